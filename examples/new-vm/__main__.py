"""A new machine joins the network in the same `pulumi up` that makes it.

Its address and host key are outputs of other resources, so the first preview cannot know them: it
shows `<address of c>` where they will stand, and each older host gets one `+` line.
`pulumi_command.local.Command` stands in for a cloud's server here: it reads from files what a cloud
would answer (`pulumi config set machine DIRECTORY`, with the files `address` and `key`).
"""

import pulumi
from pulumi_command import local

from overlay_components import Bridge, Host, Overlay, VxlanTunnel

machine = pulumi.Config().get("machine")

with Overlay("example"):
    hosts = [Host("a", address="198.18.0.11", user="root"), Host("b", address="198.18.0.12", user="root")]
    if machine:
        address = local.Command("server", create=f"cat {machine}/address")
        key = local.Command("server-key", create=f"cat {machine}/key")
        hosts.append(Host("c", address=address.stdout, host_key=key.stdout, user="root"))
    web = {"host": hosts[-1], "address": "10.10.0.11"}
    app = Bridge("app", hosts=hosts, subnets=["10.10.0.0/24"], containers={"web": web})
    VxlanTunnel("app-mesh", bridge=app, vni=42)

pulumi.export("web", app.plan.apply(lambda plan: plan["containers"]["web"]))
