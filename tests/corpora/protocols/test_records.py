import csv
import gc
import io
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moelora_ad.corpora import ProtocolError
from moelora_ad.corpora.protocols import records
from moelora_ad.corpora.protocols.collecting import Collector
from moelora_ad.corpora.protocols.records import Block, read_columns, read_lines, read_table
from moelora_ad.errors import InputError

TWO = ("utterance", "label")
THREE = ("speaker", "utterance", "label")
SPACES = " \t\r\v\f\x1c\x85\u2003"
WORDS = st.sampled_from(["a", "bb", "é", "\U0001f600", '"', ",", *SPACES, "\n", "\n", " ", "a b\n", "a b\n"])
SOUP = st.binary(max_size=60) | st.lists(WORDS, max_size=40).map(lambda words: "".join(words).encode())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("records") / "protocol.txt"


def rows(blocks, names):
    return [
        (line, list(row))
        for block in blocks
        for line, row in zip(block.lines, zip(*(block.columns[name] for name in names), strict=True), strict=True)
    ]


def result(read, path, data):
    """The result of reading ``data``, or its error, which must be one line that begins with the file."""
    path.write_bytes(data)
    try:
        return read(path)
    except ProtocolError as error:
        message = str(error)
        assert message.startswith(str(path))
        assert len(message.splitlines()) == 1
        return message.removeprefix(str(path))


def is_text(data):
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


@settings(deadline=None)
@given(SOUP, st.sampled_from([(TWO,), (THREE, TWO)]), st.sampled_from([1, 5, 2**16]))
@example(b"a b\nc  d\n\n \r\ne f", (TWO,), 1)
@example(b"\n\na  b c\na\tb", (TWO,), 2**16)
@example(b"a b c d\n\xc2\x85\na\n", (TWO,), 5)
@example(b"a b c\nd", (TWO,), 2**16)  # 4 fields in all, like two correct lines
def test_lines_are_what_splitting_each_of_them_gives(path, data, layouts, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_CHUNK", chunk)
        read = result(lambda path: list(read_lines(path, *layouts)), path, data)
    if not is_text(data):
        assert read.startswith(", line ")
        return
    lines = enumerate(data.decode().removeprefix("\ufeff").split("\n"), 1)
    expected = [(line, text.split()) for line, text in lines if text.split()]
    layout = next((layout for layout in layouts if expected and len(layout) == len(expected[0][1])), layouts[-1])
    faulty = [(line, len(row)) for line, row in expected if len(row) != len(layout)]
    if faulty:
        line, size = faulty[0]
        assert read == f", line {line}: {size} columns where {len(layout)} are needed: {' '.join(layout)}"
    else:
        assert rows(read, layout) == expected
        assert all(len(block.lines) for block in read)


def test_line_numbers_over_many_chunks(path):
    text = "".join(f"speaker{n} u{n} spoof\n" + "\n" * (n % 1000 == 0) for n in range(20_000))
    path.write_text(text)
    blocks = list(read_lines(path, THREE))
    assert len(blocks) > 3
    numbered = [(line, words.split()) for line, words in enumerate(text.split("\n"), 1) if words]
    assert rows(blocks, THREE) == numbered
    path.write_text(text + "u v\n")
    with pytest.raises(ProtocolError, match=r"line 20021: 2 columns where 3 are needed: speaker utterance label$"):
        list(read_lines(path, THREE))


@settings(deadline=None)
@given(st.sampled_from([b"a,b\n", b"a\n", b'"a","b\n"\n', b""]), SOUP)
@example(b"", b",\r,")  # two columns without names
def test_any_bytes_give_a_table_or_an_error_with_its_line(path, header, rest):
    data = header + rest

    def read(path):
        names, blocks = read_table(path)
        return names, list(blocks)

    def read_rows(path):
        names, lines, columns = read_columns(path)
        records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return names, list(zip(lines, records, strict=True))

    table, plain = result(read, path, data), result(read_rows, path, data)
    if isinstance(table, str):
        assert table == plain
        assert table.startswith(", line ") or table == ": is empty; the first line must name the columns"
        return
    (names, blocks), (same, numbered) = table, plain
    assert names == same
    lines = [line for block in blocks for line in block.lines]
    assert lines == [line for line, _ in numbered] == sorted(set(lines))
    assert all(1 < line <= len(data.decode().splitlines()) for line in lines)
    for block in blocks:
        assert {len(column) for column in block.columns.values()} == {len(block.lines)}
    for name in set(names) - {""}:
        stripped = [field for block in blocks for field in block.columns[name]]
        assert stripped == [record[name].strip() for _, record in numbered]


def test_csv_tells_the_lines_where_records_start_and_raises_what_is_asked_for(path):
    path.write_text('a, b\n1,"x\ny"\n\n2, z \n')
    assert read_columns(path, InputError) == (["a", "b"], [2, 5], {"a": ["1", "2"], "b": ["x\ny", " z "]})
    path.write_text("a,b\n1,2\n3\n")
    with pytest.raises(InputError, match="line 3: 1 fields where the header has 2") as error:
        read_columns(path, InputError)
    assert type(error.value) is InputError


def test_some_of_a_block():
    block = Block(range(5, 8), {"a": ["x", "y", "z"], "b": "123"})
    assert block.where([True, False, True]) == Block((5, 7), {"a": ("x", "z"), "b": ("1", "3")})


def test_an_utterance_that_is_repeated_far_away(path):
    words = [f"u{n} spoof\n" for n in range(20_000)]
    path.write_text("\n" + "".join(words) + "u7 bonafide\nu7 spoof\nu3 spoof\n")
    collector = Collector(path)
    for lines, columns in read_lines(path, TWO):
        collector.add(lines, columns["utterance"], columns["label"])
    with pytest.raises(ProtocolError, match=r"line 20002: utterance 'u7' was already in line 9$"):
        collector.trials("", "")


class SameHash(str):
    def __hash__(self):
        return 7


def test_utterances_that_share_a_hash_are_not_repeated():
    collector = Collector("protocol.txt")
    collector.add(range(1, 4), [SameHash(text) for text in "abc"], ["spoof"] * 3)
    assert [trial.utterance for trial in collector.trials("", "")] == ["a", "b", "c"]
    collector.add([4], [SameHash("b")], ["spoof"])
    with pytest.raises(ProtocolError, match=r"line 4: utterance 'b' was already in line 2$"):
        collector.trials("", "")


@settings(max_examples=150, deadline=None)
@given(
    records=st.lists(st.lists(st.text('ab,"\n\r é', max_size=4), min_size=2, max_size=2), max_size=9),
    blank=st.lists(st.integers(0, 9), max_size=3),
    fault=st.sampled_from(["", '"a"b,c\n', "a\n", '"never closed']),
)
def test_records_are_read_in_blocks_as_one_by_one(path, records, blank, fault):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(["x", "y"])
    for number, record in enumerate(records):
        text.write("\n" * blank.count(number))
        csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow(record)
    path.write_bytes((text.getvalue() + fault).encode())
    # The standard library's reader, one record at a time.
    reader = csv.reader(io.StringIO(text.getvalue() + fault, newline=""), strict=True)
    wanted, line, faulty = [], 1, None
    try:
        for row in reader:
            if row and len(row) != 2:
                faulty = line
                break
            wanted += [(line, row)] if row else []
            line = reader.line_num + 1
    except csv.Error:
        faulty = line
    with mock.patch("moelora_ad.corpora.protocols.records._BLOCK", 3):
        if faulty is not None:
            with pytest.raises(ProtocolError, match=rf"line {faulty}: "):
                read_columns(path)
            return
        header, lines, columns = read_columns(path)
    assert [(1, header), *zip(lines, map(list, zip(columns["x"], columns["y"], strict=True)), strict=True)] == wanted


def test_a_large_table_is_not_searched_for_garbage_while_it_is_read(path):
    path.write_text("a,b\n" + "".join(f"{n},x\n" for n in range(30_000)))

    def searches():
        return sum(generation["collections"] for generation in gc.get_stats())

    before = searches()
    read_columns(path)
    assert searches() - before < 5  # one for every 700 lines if too many objects exist at once
