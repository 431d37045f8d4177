"""How a run says how far it is: on a terminal, in a pipe, as JSON lines, and to whoever looks from another terminal."""
