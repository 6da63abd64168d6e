"""``python -m tpokit`` and ``torchrun -m tpokit``: the same as ``tpokit``."""

from tpokit.cli import main

if __name__ == "__main__":
    main()
