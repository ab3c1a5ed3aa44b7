"""``python -m teso_deploy``."""

from __future__ import annotations

from teso_deploy.cli import main

if __name__ == "__main__":
    main()
