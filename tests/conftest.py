"""Tests that need another kernel than this machine's run in a VM (vm_plugin.py)."""

pytest_plugins = ("tests.vm_plugin",)
