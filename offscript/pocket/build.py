"""Makes the embedded model: ``python -m offscript.pocket.build`` (``--data-only`` for the held-out data alone)."""

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> None:
    """Writes ``data/pocket``, then trains, measures and saves ``assets/pocket``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-only", action="store_true", help="write data/pocket and stop")
    options = parser.parse_args(arguments)
    from offscript.pocket.data import write_data

    paths = write_data(ROOT / "data" / "pocket")
    print(f"wrote {len(paths)} files under data/pocket")
    if options.data_only:
        return


if __name__ == "__main__":
    main()
