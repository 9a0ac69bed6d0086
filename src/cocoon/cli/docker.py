"""What Docker's users type that cocoon has no command for: why not, and what to use instead.

Only read when a word is no command of ours. The words that do have a command are aliases in `cli.tree`.
"""

from __future__ import annotations

BUILD = ("builds no images", "docker build or buildah, then: docker save NAME | cocoon image import NAME -")
ONE_HOST = ("works on one host", "cocoon run on each of them, over ssh")
PAUSE = ("does not pause VMs", "cocoon stop VM and cocoon start VM keep its disk")
LOGIN = ("keeps no credentials", "docker login or skopeo login: cocoon reads what they write")

# word -> (what cocoon does not do, what to type)
INSTEAD = {
    "build": BUILD,
    "builder": BUILD,
    "buildx": BUILD,
    "commit": ("makes no images of VMs", "copy out what you need: cocoon cp VM:PATH ."),
    "compose": ("starts no groups of VMs", "a script with one line for each: cocoon run -d --name NAME IMAGE"),
    "config": ONE_HOST,
    "container": ("calls them VMs", "see: cocoon vm --help"),
    "context": ONE_HOST,
    "diff": ("does not compare a VM with its image", "look inside: cocoon shell VM"),
    "events": ("has no daemon that could tell of events", "wait for an end: cocoon wait VM"),
    "export": ("packs no whole VMs", "pack what you need: cocoon cp VM:PATH - > FILE.tar"),
    "history": ("does not keep an image's history", "its layers: cocoon image inspect IMAGE"),
    "info": ("has no daemon to ask", "what this host can do: cocoon doctor"),
    "load": ("needs a name for what it loads", "cocoon image import NAME FILE"),
    "login": LOGIN,
    "logout": LOGIN,
    "manifest": ("makes no manifests", "look at one: cocoon image inspect IMAGE"),
    "node": ONE_HOST,
    "pause": PAUSE,
    "plugin": ("has no plug-ins", "see: cocoon --help"),
    "push": ("only pulls", "skopeo copy or docker push"),
    "rename": ("does not rename VMs", "choose the name at the start: cocoon run --name NAME IMAGE"),
    "restart": ("has no restart", "cocoon stop VM && cocoon start VM"),
    "search": ("searches no registries", "when you know the name: cocoon pull IMAGE"),
    "secret": ONE_HOST,
    "service": ONE_HOST,
    "stack": ONE_HOST,
    "stats": ("does not measure guests", "ask one: cocoon exec VM top -b -n 1"),
    "swarm": ONE_HOST,
    "top": ("does not look into guests", "ask one: cocoon exec VM ps aux"),
    "unpause": PAUSE,
    "update": ("does not change VMs", "choose the size at the start: cocoon run --cpu N --memory SIZE IMAGE"),
    "volume": ("keeps no volumes", "files of the host: cocoon run -v HOST:GUEST:ro; in and out: cocoon cp"),
}
