import sys
from pathlib import Path

# The workers import the tests' own backend the way this process does.
sys.path.insert(0, str(Path(__file__).parent))
