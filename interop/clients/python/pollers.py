"""Clients that poll a key: python pollers.py MOUNT KEY POLLERS ROTATIONS.

Each asks for the key's latest version in a loop. When it is a new one, it writes with it and reads what any of them wrote with every version so far. When all have
asked for a version, a line "seen N" tells whoever rotates; so a rotation comes while others write and read. The last line is JSON: what was done, and what failed.
"""

import base64
import json
import os
import random
import sys
import threading

import hvac

MOUNT, KEY, POLLERS, ROTATIONS = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


class Shared:
    """What the pollers know together. Its lock guards all of it."""

    def __init__(self):
        self.lock = threading.Lock()
        self.written = {}  # version: list of (ciphertext, plaintext)
        self.seen = {}  # version: number of pollers
        self.done = {"polled": 0, "written": 0, "read": 0, "required": 0, "failed": 0, "why": []}

    def count(self, what, n=1):
        with self.lock:
            self.done[what] += n

    def failed(self, why):
        with self.lock:
            self.done["failed"] += 1
            if len(self.done["why"]) < 5:
                self.done["why"].append(why)

    def has_seen(self, version):
        with self.lock:
            self.seen[version] = self.seen.get(version, 0) + 1
            if self.seen[version] == POLLERS:
                print(f"seen {version}", flush=True)

    def wrote(self, ciphertext, plaintext):
        version = int(ciphertext.split(":")[1][1:])
        with self.lock:
            self.written.setdefault(version, []).append((ciphertext, plaintext))
            self.done["written"] += 1

    def one_of_each(self):
        with self.lock:
            return [random.choice(texts) for texts in self.written.values()]


def poll(shared, number):
    client = hvac.Client(url=os.environ["VAULT_ADDR"], token=os.environ["VAULT_TOKEN"], verify=os.environ["VAULT_CACERT"])
    transit, last, wrote = client.secrets.transit, 0, 0
    while last < ROTATIONS + 1:
        try:
            key = transit.read_key(KEY, mount_point=MOUNT)["data"]
            shared.count("polled")
            if key.get("rotation_required"):
                shared.count("required")
            if key["latest_version"] == last:
                continue
            if key["latest_version"] < last:
                raise AssertionError(f"version {last} was there, and now {key['latest_version']} is the latest")
            for version in range(last + 1, key["latest_version"] + 1):
                shared.has_seen(version)
            last, wrote = key["latest_version"], wrote + 1
            plain = base64.b64encode(f"{number}/{wrote}".encode()).decode()
            text = transit.encrypt_data(KEY, plaintext=plain, mount_point=MOUNT)["data"]["ciphertext"]
            shared.wrote(text, plain)
            texts = shared.one_of_each()
            results = transit.decrypt_data(KEY, ciphertext="", batch_input=[{"ciphertext": c} for c, _ in texts], mount_point=MOUNT)["data"]["batch_results"]
            if [r.get("plaintext") for r in results] != [p for _, p in texts]:
                raise AssertionError(f"read {results}")
            shared.count("read", len(texts))
        except Exception as e:  # one that fails is counted, and goes on
            shared.failed(f"poller {number}: {type(e).__name__}: {e}")
            if shared.done["failed"] > 10 * POLLERS:
                return


def main():
    shared = Shared()
    pollers = [threading.Thread(target=poll, args=(shared, n)) for n in range(POLLERS)]
    for p in pollers:
        p.start()
    for p in pollers:
        p.join()
    shared.done["versions"] = sorted(shared.written)
    print(json.dumps(shared.done), flush=True)


if __name__ == "__main__":
    main()
