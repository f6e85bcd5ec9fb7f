"""The commands of `turret`, by subject. Each is a function of a Session and its own arguments; `cli.py` puts them together.

packages    push, pull, ls, show, rm: packages in a store
running     predict, load, unload: what a server does with them
changes     alias, rollback, promote, apply, history: what is called prod, and since when
keygen      API keys and signers, for a server's files
local       inspect, convert: packages on this machine
"""
