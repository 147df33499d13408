"""Versioned artifacts on a local folder or S3. The manifest is the commit. Below a store's root:

artifacts/{kind}/{key}/{attempt}/...    data
artifacts/{kind}/{key}.json             the manifest, written last, create-only
work/{key}/{group}/{name}/...           what long work leaves for its next attempt
work/{key}/lease.json                   who works on a key right now
refs/{name}.json                        human names for keys
"""

from rlt_core.store.lease import Lease
from rlt_core.store.manifest import FileEntry, Manifest, Ref
from rlt_core.store.store import Attempt, Store
from rlt_core.store.workspace import Workspace
