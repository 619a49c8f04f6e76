"""A real Slurm of one node on this machine, in a folder of its own, without services."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import time

NEEDS = ("slurmctld", "slurmd", "munged", "sbatch")
LIMIT = 120.0

# A job in `urgent` puts those of the other partitions back into the queue: in `grace`, after a minute. They wait
# there until their old credential has expired, which is soon. Every path and port is the test's own.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=60
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=600 PriorityTier=1 State=UP
PartitionName=grace Nodes=ALL MaxTime=600 PriorityTier=1 GraceTime=60 State=UP
PartitionName=urgent Nodes=ALL MaxTime=600 PriorityTier=2 State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here; empty if there can."""
    if os.getuid():
        return "needs root"
    absent = [name for name in NEEDS if not shutil.which(name)]
    packages = "slurm-wlm and munge"
    return f"needs {packages} (there is no {absent[0]})" if absent else ""


class Cluster:
    """A running Slurm; ``environment`` is what its clients need."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.daemons: list[subprocess.Popen] = []
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: str) -> str:
        """The output of a client."""
        done = subprocess.run(
            command,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self) -> dict[str, str]:
        """The state of every job in the queue, array tasks one by one."""
        rows = self.run("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return {job: state for job, state in map(str.split, rows)}

    def wait(self, what, limit=LIMIT):
        """Until ``what()`` is true."""
        deadline = time.monotonic() + limit
        while not (found := what()):
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.2)
        return found

    def said(self) -> str:
        """The ends of what the daemons said."""
        logs = sorted(self.folder.glob("*.log")) + sorted(self.folder.glob("*.out"))
        return "".join(f"\n{log.name}:\n{log.read_text()[-3000:]}" for log in logs)

    def start(self):
        host = socket.gethostname().partition(".")[0]
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(mode=0o700)
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        with contextlib.ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in range(2)]
            for probe in probes:
                probe.bind(("127.0.0.1", 0))
            ports = [probe.getsockname()[1] for probe in probes]
        config = self.folder / "slurm.conf"
        config.write_text(CONFIG.format(host=host, folder=self.folder, ports=ports))
        # Two files in the place of two GPUs: Slurm counts them and hands out their numbers.
        devices = ["/dev/null", "/dev/zero"]
        gres = "".join(f"Name=gpu File={device}\n" for device in devices)
        (self.folder / "gres.conf").write_text(gres)
        files = {
            "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed", "socket": "socket",
        }  # fmt: skip
        options = [f"--{k}={munge / v}" for k, v in files.items()]
        self.daemon("munged", "--foreground", "--force", *options)
        self.wait((munge / "socket").exists, 20)
        self.daemon("slurmctld", "-D", "-f", str(config))
        self.daemon("slurmd", "-D", "-f", str(config), "-N", host)
        self.wait(self.idle, 60)

    def daemon(self, *command: str):
        """Starts one as a child of ours, which is ended with us."""
        output = (self.folder / f"{command[0]}.out").open("w")
        with output:
            self.daemons.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            )

    def idle(self) -> bool:
        """Whether the controller answers, and its node waits for work."""
        command = ["sinfo", "--noheader", "--format=%t"]
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True
        )
        return "idle" in done.stdout.split()

    def stop(self):
        """Ends every job, and then the daemons, those that would not within a few seconds by force."""
        if len(self.daemons) == 3:
            with contextlib.suppress(Exception):
                self.run("scancel", "--full", "--signal=KILL", f"--user={os.getuid()}")
                self.run("scancel", f"--user={os.getuid()}")
                self.wait(lambda: not self.jobs(), 20)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@contextlib.contextmanager
def cluster(folder: pathlib.Path):
    """Starts one, and stops it whatever happens."""
    found = Cluster(folder)
    try:
        found.start()
        yield found
    finally:
        found.stop()
