"""Open the web page: a text, wishes or a MIDI file become pieces to hear, see and change.

python launch/demo.py

python launch/demo.py --checkpoint runs/<name> --bridge runs/<bridge>

python launch/demo.py --checkpoint runs/<name> --host 0.0.0.0 --port 8080

Without --host only this machine reaches it. From another one, better than --host, forward the port:
ssh -L 7860:localhost:7860 <this machine>, then http://localhost:7860. Ctrl-C ends it.
"""

if __name__ == "__main__":
    from meloformer.interrupts import end_at_signals

    end_at_signals()

from meloformer.command_line import run_recipe
from meloformer.demo.actions import Studio
from meloformer.demo.composer import load_composer
from meloformer.demo.reading import MidiReader
from meloformer.demo.server import PageServer
from meloformer.demo.settings import PageConfig


def main(config: PageConfig) -> None:
    """Load, listen, serve."""
    composer = load_composer(config, tell=print)
    composer.warm_up()
    studio = Studio(composer, MidiReader(config.files), config.limits)
    with PageServer(studio, config.host, config.port) as server:
        if not config.is_local:
            print(
                f"warning: --host {config.host}: whoever reaches this machine's port "
                f"{server.server_port} may use the page; there is no password"
            )
        print(f"{server.url}  (Ctrl-C ends it)", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    run_recipe(main, PageConfig, after_a_stop="nothing was kept")
