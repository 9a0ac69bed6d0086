"""How a VM reaches the world: an interface in a network namespace of its own, and a TAP there for the VMM."""
