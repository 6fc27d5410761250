"""`python -m mnist_jax COMMAND`, also installed as `mnist-jax`."""

import importlib
import signal
import sys

COMMANDS = {
    "train": ("mnist_jax.train", "train the network, evaluate it and save it"),
    "evaluate": ("mnist_jax.commands.evaluate", "show how well a trained network does"),
    "predict": ("mnist_jax.commands.predict", "name the digit in each picture"),
    "export": ("mnist_jax.commands.export", "save a trained network as one file for jax"),
    "demo": ("mnist_jax.commands.demo", "serve a page to draw digits on"),
    "seeds": ("mnist_jax.commands.seeds", "train with many seeds and compare the results"),
    "check": ("mnist_jax.commands.check", "test whether this machine gives the known numbers"),
}


def main() -> None:
    """Runs the named command, or lists all commands."""
    name, *args = sys.argv[1:] or ["--help"]
    if name not in COMMANDS:
        sys.exit(print_commands(name))
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Exit silently on Ctrl-C during start-up.
    command = importlib.import_module(COMMANDS[name][0])
    from mnist_jax.runtime.program import run_command

    run_command(command.Options, command.main, f"python -m mnist_jax {name}", args)


def print_commands(name: str) -> int:
    """Prints the table of commands. Returns the exit code: 0 for --help, 2 for other names."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Exit silently if the reader is `head -1`.
    print("usage: python -m mnist_jax COMMAND [--help]\n")
    for command, (_, text) in COMMANDS.items():
        print(f"  {command:8} {text}")
    if name in ("-h", "--help"):
        return 0
    print(f"\nunknown command: {name}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
