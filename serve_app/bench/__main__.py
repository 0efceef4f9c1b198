"""``python -m serve_app.bench``: the benchmark where nothing but torch and numpy is installed."""

import sys

from serve_app.bench.command import main

if __name__ == "__main__":
    sys.exit(main())
