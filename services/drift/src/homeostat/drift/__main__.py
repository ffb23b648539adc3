"""``python -m homeostat.drift``."""

from homeostat.drift.main import main

if __name__ == "__main__":
    main()
