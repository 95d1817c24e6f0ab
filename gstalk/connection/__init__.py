"""The floor of one connection: sockets, the traffic on them, and the jobs that it has reserved."""
