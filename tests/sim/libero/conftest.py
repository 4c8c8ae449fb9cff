import sys
from pathlib import Path

# These tests share a backend, and with it the scenes that it has compiled.
sys.path.insert(0, str(Path(__file__).parent))
