"""Real external engines for tests, set up once under target/engines."""

import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
for other in ("e2e", os.path.join("..", "benches")):
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), other))
