"""Flows, the `rlt` command line and its display."""

from rlt_core.environment import bypass_proxies_on_loopback

bypass_proxies_on_loopback()
