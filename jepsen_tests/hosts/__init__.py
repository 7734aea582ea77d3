"""Hosts for real processes: namespaces (or proxies) to cut, disks to break, processes to kill."""
