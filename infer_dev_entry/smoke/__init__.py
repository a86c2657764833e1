"""The validation checklist as a command: does a server do what its users will ask of it."""
