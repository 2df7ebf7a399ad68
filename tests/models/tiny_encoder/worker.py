"""Entry of an engine process that serves the encoder. ``python -m tests.models.tiny_encoder.worker SOCKET STAMP``"""

from __future__ import annotations

import sys

from app.worker import main
from tests.models.tiny_encoder import served

if __name__ == "__main__":
    with served():
        sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
