"""Settings that have to be made before anything imports Triton."""

import os
import signal
from pathlib import Path

# Triton decides at its first import whether its own functions are interpreted, and transformers
# imports it on the way to a model; a GPU's driver shows as this device file.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
# A run started in the background of a script ignores SIGINT, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
