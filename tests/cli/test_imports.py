"""Figures of score files need no torch."""

import subprocess
import sys


def test_evaluate_does_not_import_torch():
    program = (
        "import sys, moelora_ad.cli.evaluate, moelora_ad.evaluation as e\n"
        "e.ScoreCurve([2.0, -1.0], [1, 0]).cllr()\n"
        "assert not {'torch', 'torchmetrics', 'matplotlib'} & set(sys.modules)\n"
        "assert all(hasattr(e, name) for name in e.__all__) and not hasattr(e, 'nothing')\n"
        "assert 'torchmetrics' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
