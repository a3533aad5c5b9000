"""What a processor may change: the demo's answers under every instruction set that a machine can pretend to have."""
