"""The agent: applies one stack's document on one host, as one transaction, and ends.

It runs on other people's machines as root, so it is the standard library plus pyroute2's
message classes, works from Python 3.9 on, and knows nothing of Pulumi.
"""

__version__ = "0.1.0"

#: Where the agent is on every host. Part of the contract: old commands in Pulumi's state call it.
COMMAND = "/usr/local/sbin/overlay-agent"
#: What it keeps there, and in it a folder for each service that is a program.
STATE = "/var/lib/overlay"
SERVICES_FOLDER = f"{STATE}/services"
