"""An overlay network between two servers, declared from a Pulumi program of one's own.

Run it in a checkout: `. tools/env.sh`, `python -m lab up --hosts 2`, and in this folder
`python -m lab exec --home -- pulumi up`. For servers of your own put their addresses below.
"""

import pulumi

from overlay_components import Bridge, DhcpRouter, Host, Overlay, VxlanTunnel

with Overlay("example"):
    a, b = Host("a", address="198.18.0.11", user="root"), Host("b", address="198.18.0.12", user="root")
    app = Bridge("app", hosts=[a, b], subnets=["10.10.0.0/24"], addresses={a: "10.10.0.1", b: "10.10.0.2"})
    VxlanTunnel("app-mesh", bridge=app, vni=42)
    DhcpRouter("app-dhcp", bridge=app, host=a, masquerade=True)

# Outputs wait for the hosts: whoever uses them finds the network in place.
pulumi.export("mtu", app.mtu)
