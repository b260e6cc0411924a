"""One network that two stacks make, each with hosts of its own: neither grows with the other's.

Each stack is a mesh of its hosts, and its first host is joined with the other stack's first, whose address is read
from that stack's outputs. In a checkout with `python -m lab up --hosts 4`, for each of the stacks `east` and `west`:
`pulumi stack init east; pulumi config set hosts '{"h1": "198.18.0.11", "h2": "198.18.0.12"}'; pulumi up`. Then tell
both of each other, `pulumi config set other organization/overlay-two-stacks/west`, and `pulumi up` once more.
"""

import pulumi

from overlay_components import Bridge, Host, Overlay, VxlanTunnel

config = pulumi.Config()
addresses = config.require_object("hosts")
other = config.get("other")
number = {"east": 1, "west": 2}[pulumi.get_stack()]
there = {"there": {"address": pulumi.StackReference(other).require_output("gateway")}} if other else {}

with Overlay("site", peers=there):
    hosts = [Host(name, address=address, user="root") for name, address in addresses.items()]
    inside = {host: f"10.10.{number}.{place}" for place, host in enumerate(hosts, 1)}
    app = Bridge("app", hosts=hosts, subnets=["10.10.0.0/16"], addresses=inside)
    VxlanTunnel("app-mesh", bridge=app, vni=42)
    if other:
        ends = {"link": [hosts[0], "there"]}
        VxlanTunnel("app-link", bridge=app, topology="pairs", endpoints=ends, vni=43, ifname="vl")

pulumi.export("gateway", next(iter(addresses.values())))
