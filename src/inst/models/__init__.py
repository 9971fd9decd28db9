"""The models and configurations that ship with the package."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
