"""`python -m mnist_jax COMMAND`, also installed as `mnist-jax`: a table of commands."""

import runpy
import sys

from mnist_jax.command_line import leave_signals_to_the_system

COMMANDS = {
    "train": ("mnist_jax.train", "train the network, test it and save it"),
    "evaluate": ("mnist_jax.commands.evaluate", "look closely at how well it does"),
    "predict": ("mnist_jax.commands.predict", "ask it which digits are in pictures"),
    "export": ("mnist_jax.commands.export", "save it as one file that only jax is needed to run"),
    "demo": ("mnist_jax.commands.demo", "draw a digit in the browser, and see what it says"),
    "seeds": ("mnist_jax.commands.seeds", "train it from many seeds, and see how they spread"),
    "check": ("mnist_jax.commands.check", "see whether this machine gives the known numbers"),
}


def main() -> None:
    """Runs the command that is named, or lists all; exits with 2 if there is none of that name."""
    leave_signals_to_the_system()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv = [f"mnist_jax {name}", *sys.argv[2:]]
        runpy.run_module(COMMANDS[name][0], run_name="__main__")
        return
    print("usage: python -m mnist_jax COMMAND [--help]\n")
    for command, (_, what) in COMMANDS.items():
        print(f"  {command:8} {what}")
    if name not in ("-h", "--help"):
        print(f"\n{name} is no command", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
