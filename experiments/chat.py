"""`python experiments/chat.py …` is `beni chat …`."""

from beni.cli.main import run

if __name__ == "__main__":
    run("chat")
