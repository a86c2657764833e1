"""Why a server ended, told from its exit status, the kernel and its log, and what follows. Pure."""
