"""``python -m moelora_ad`` is the same program as ``moelora-ad`` and ``lightning``."""

from moelora_ad.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
