"""The demo: a real microVM with two containers and their pages, from nothing to cleaned up, each step timed.

`make demo` runs it as root. It works in directories of its own below /var/tmp, keeps what images are built from in the
shared cache, and writes build/demo.json. It ends with `DEMO OK`, or with `DEMO FAILED: …` and the last words of guest
and hypervisor.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from demo_edge import Browser, authenticator, held_address
from demo_node import Cellmesh, DemoError, kill_all_of
from demo_vmm import choose_vmm, install, label_of

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "build" / "demo.json"
# Program and the Debian package it comes in; QEMU joins them where the emulator is used.
PACKAGES = {"mmdebstrap": "mmdebstrap", "mkfs.erofs": "erofs-utils", "mke2fs": "e2fsprogs", "setpriv": "util-linux"}
MEMORY = "768M"
HOG_LIMIT = "128M"
HOG = "held = []\nwhile True:\n    held.append(bytearray(b'x' * (8 << 20)))"
OOM_EXIT = 128 + signal.SIGKILL
BOOT_TIMEOUT = "5m"
RETURN_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step that was done; `seconds` of wall-clock time."""

    name: str
    seconds: float
    note: str


class Demo:
    """The steps, and what they took."""

    def __init__(self, cellmesh: Cellmesh) -> None:
        self.cellmesh = cellmesh
        self.steps: list[Step] = []
        self.timeline: list[dict[str, object]] = []
        self.user = str(uuid.uuid4())
        self.browser = Browser(f"https://{cellmesh.edge_listen}", cellmesh.state_dir / "edge-authority.pem", self.user)
        self._images: dict[str, str] = {}
        self._vm = ""

    def step(self, name: str, act: Callable[[], str]) -> None:
        """Do one step; `act` returns what is worth saying of it."""
        print(f"▸ {name} …", flush=True)
        start = time.monotonic()
        note = act()
        step = Step(name=name, seconds=round(time.monotonic() - start, 3), note=note)
        self.steps.append(step)
        print(f"  {step.seconds:8.2f} s  {note}", flush=True)

    def run(self) -> None:
        """Do everything."""
        self.step("build the guest image", self._build_image)
        self.step("build and import the example images", self._import_examples)
        start = time.monotonic()
        print("▸ start the node …", flush=True)
        with self.cellmesh.node(), self._authorizer():
            self.steps.append(Step(name="start the node", seconds=round(time.monotonic() - start, 3), note=""))
            self.step("create a user's VM and boot it", self._create)
            self.step("probe it layer by layer", self._health)
            self.step("start sandbox-live", lambda: self._start("live"))
            self.step("start sandbox-dev", lambda: self._start("dev"))
            self.step("run a command in each", self._exec)
            self.step("read their logs", self._logs)
            self.step("hog memory in one, ask the other", self._hog)
            self.step("recycle the VM", self._recycle)
            self.step("open the live page through the edge", lambda: self.browser.look("live"))
            self.step("open the dev page through the edge", lambda: self.browser.look("dev"))
            self.step("turn away who has not signed in", self.browser.look_without_session)
            self.step("promote dev to live, and roll back", self._promote)
            self.step("stop the VM, and let a request start it", self._wake)
            self.step("delete the VM", self._delete)
            start = time.monotonic()
            print("▸ stop the node …", flush=True)
        self.steps.append(Step(name="stop the node", seconds=round(time.monotonic() - start, 3), note=""))

    def _build_image(self) -> str:
        return self.cellmesh.run("image", "build").strip()

    def _import_examples(self) -> str:
        with tempfile.TemporaryDirectory(prefix="cellmesh-examples-") as directory:
            subprocess.run([sys.executable, ROOT / "examples" / "build.py", directory], check=True, stdout=sys.stderr)
            for name in ("live", "dev"):
                self._images[name] = self.cellmesh.run("image", "import", f"{directory}/{name}").strip()
        return ", ".join(f"{name} {digest[:19]}" for name, digest in self._images.items())

    def _create(self) -> str:
        arguments = ("--user", self.user, "--memory", MEMORY, "--wait", "--timeout", BOOT_TIMEOUT)
        *events, last = self.cellmesh.objects("vm", "create", *arguments)
        self._vm = str(field(last, "vm", "vm_id"))
        self.timeline = [{"elapsed_ms": event["elapsed_ms"], "state": _state(event)} for event in events]
        for point in self.timeline:
            print(f"  {point['elapsed_ms']:>8} ms  {point['state']}")
        return self._vm

    def _health(self) -> str:
        layers = field(self.cellmesh.objects("vm", "health", self._vm)[0], "layers")
        assert isinstance(layers, list)
        return ", ".join(f"{layer['layer']} {layer['status'].removeprefix('HEALTH_STATUS_')}" for layer in layers)

    def _start(self, name: str) -> str:
        arguments = ("--image", self._images[name], "--memory", HOG_LIMIT, "--probe-http", "8080/healthz", "--wait")
        return self.cellmesh.run("container", "start", self._container(name), *arguments).strip().splitlines()[-1]

    def _exec(self) -> str:
        said = [
            self.cellmesh.run("exec", self._container(name), "--", "sh", "-c", "echo $(id -un) on $(uname -r)").strip()
            for name in ("live", "dev")
        ]
        if not all("app on" in line for line in said):
            raise DemoError(f"The commands answered {said}.")
        return "; ".join(said)

    def _logs(self) -> str:
        sizes = {name: len(self.cellmesh.run("logs", self._container(name))) for name in ("live", "dev")}
        if not all(sizes.values()):
            raise DemoError(f"A container has written nothing: {sizes}.")
        return ", ".join(f"{name} {size} bytes" for name, size in sizes.items())

    def _hog(self) -> str:
        hog = subprocess.Popen(
            self.cellmesh.argv("exec", self._container("dev"), "--", "python3", "-c", HOG),
            env=self.cellmesh.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        answers = 0
        try:
            while hog.poll() is None or answers == 0:
                url = "http://127.0.0.1:8080/healthz"
                self.cellmesh.run("exec", self._container("live"), "--", "wget", "-q", "-O", "-", url)
                answers += 1
        finally:
            hog.kill()
            hog.wait()
        if hog.returncode != OOM_EXIT:
            raise DemoError(f"The memory hog ended with {hog.returncode}, not {OOM_EXIT}.")
        self._await_oom_event()
        return f"killed at {HOG_LIMIT}; sandbox-live answered {answers} times meanwhile"

    def _await_oom_event(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            events = self.cellmesh.objects("events", self._vm)
            if any(isinstance(item["event"], dict) and "container_oom_killed" in item["event"] for item in events):
                return
            if time.monotonic() > deadline:
                raise DemoError("No event told of the memory hog's end.")

    def _recycle(self) -> str:
        *_, last = self.cellmesh.objects("vm", "recycle", self._vm, "--wait", "--timeout", BOOT_TIMEOUT)
        deadline = time.monotonic() + RETURN_SECONDS
        while (count := self._well()) < len(self._images):
            if time.monotonic() > deadline:
                raise DemoError(f"Only {count} containers came back after the recycle.")
        return f"epoch {field(last, 'vm', 'epoch')}, both containers are back"

    def _well(self) -> int:
        containers = field(self.cellmesh.objects("container", "ls", self._vm)[0], "containers")
        assert isinstance(containers, list)
        return sum(container["status"]["health"] == "HEALTH_STATUS_SERVING" for container in containers)

    def _promote(self) -> str:
        taken = []
        for container in ("sandbox-dev", "sandbox-live"):
            switched = self.cellmesh.objects("route", "switch", self._vm, "/", container)[0]
            taken.append(f"{field(switched, 'elapsed_ms')} ms")
            if (answered := self.browser.served_by("/")) != container:
                raise DemoError(f"/ was switched to {container} and is answered by {answered}.")
        return f"switched in {taken[0]}, back in {taken[1]}, each until the edge served it"

    def _wake(self) -> str:
        self.cellmesh.run("vm", "stop", self._vm, "--wait", "--timeout", BOOT_TIMEOUT)
        return self.browser.wake()

    def _authorizer(self) -> AbstractContextManager[None]:
        edge = self.cellmesh.ready["edge"]
        return authenticator(Path(edge["authorizer"]), self.cellmesh.run_dir / "authenticator.log", gid=edge["gid"])

    def addresses(self) -> dict[str, str]:
        """Return where a browser finds the pages while the demo runs."""
        link = self.browser.address
        return {"sign in": self.browser.sign_in_link, "live": f"{link}/", "dev": f"{link}/dev/"}

    def _delete(self) -> str:
        self.cellmesh.run("vm", "delete", self._vm, "--wait", "--timeout", BOOT_TIMEOUT)
        if field(self.cellmesh.objects("vm", "ls")[0], "vms"):
            raise DemoError("The VM is still there.")
        return "nothing is left of it"

    def _container(self, name: str) -> str:
        return f"{self._vm}/sandbox-{name}"


def field(value: object, *path: str) -> object:
    """Return the field at `path` of nested JSON objects; raises DemoError if it is not there."""
    for name in path:
        if not isinstance(value, dict) or name not in value:
            raise DemoError(f"There is no {'.'.join(path)} in the answer.")
        value = value[name]
    return value


def _state(point: dict[str, object]) -> str:
    event = point["event"]
    change = event.get("vm_state_changed") if isinstance(event, dict) else None
    return str(change["to"]).removeprefix("VM_STATE_") if isinstance(change, dict) else "event"


def report(label: str, demo: Demo, failure: str) -> None:
    """Print the table and write it to build/demo.json."""
    print(f"\n{'step':<40} {'seconds':>9}")
    for step in demo.steps:
        print(f"{step.name:<40} {step.seconds:>9.2f}")
    print(f"{'all':<40} {sum(step.seconds for step in demo.steps):>9.2f}\n{label}")
    for name, address in demo.addresses().items():
        print(f"{name:<8} {address}")
    document = {
        "ok": not failure,
        "failure": failure,
        "label": label,
        "vmm": demo.cellmesh.environment["CELLMESH_VMM"],
        "boot_timeline": demo.timeline,
        "addresses": demo.addresses(),
        "steps": [asdict(step) for step in demo.steps],
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(document, indent=2) + "\n")


def interrupt(number: int, frame: object) -> None:  # noqa: ARG001  # the shape of a signal handler
    """End the demo as Ctrl-C does, so that it cleans up."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo; return its exit code."""
    signal.signal(signal.SIGTERM, interrupt)
    home = Path(tempfile.mkdtemp(prefix="cellmesh-demo-", dir="/var/tmp"))  # mkdtemp's name is unguessable
    home.chmod(0o755)
    failure = ""
    try:
        install(PACKAGES)
        vmm = choose_vmm(home)
        label = label_of(vmm)
        print(f"{vmm}: {label}", flush=True)
        with held_address() as address:
            demo = Demo(Cellmesh(home, vmm, edge_listen=address))
            try:
                demo.run()
            except (DemoError, subprocess.SubprocessError) as error:
                failure = str(error)
        report(label, demo, failure)
    except (DemoError, subprocess.SubprocessError, OSError) as error:
        failure = str(error)
    except KeyboardInterrupt:
        failure = "interrupted"
    finally:
        kill_all_of(home)
        shutil.rmtree(home, ignore_errors=True)
    print(f"DEMO FAILED: {failure}" if failure else "DEMO OK", flush=True)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
