"""Run the demonstration alone: ``python -m refold.demo``."""

from refold.demo.command import demo

if __name__ == "__main__":
    demo()
