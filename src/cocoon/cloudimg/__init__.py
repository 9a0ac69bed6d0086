"""Disk images: what strangers' disks are, whether they may come in, and how they become a base of VMs."""
