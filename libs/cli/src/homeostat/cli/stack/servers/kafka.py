"""Apache Kafka as one KRaft node on loopback."""

import base64
import os
import uuid
from pathlib import Path

from homeostat.cli.stack import probes
from homeostat.cli.stack.java import Java
from homeostat.cli.stack.ports import LOOPBACK
from homeostat.cli.stack.program import Program, run

# Small and quick: C1 only, one collector thread. Kafka's own work here is I/O.
JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")
LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)

CONFIG = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
log.dirs={data}

num.partitions=4
auto.create.topics.enable=false
message.max.bytes=2097152
log.segment.bytes=67108864
log.cleaner.dedupe.buffer.size=16777216

# One node: nothing to replicate to.
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# After a kill, the controller refuses the new broker until the session of the old one is over.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

# Groups form at once, and tests may notice a dead member within a second.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
"""


def program(folder: Path, *, port: int, controller_port: int, start: tuple[str, ...]) -> Program:
    """``start`` is a ``command``."""
    data = folder / "data"
    config = folder / "server.properties"

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = CONFIG.format(host=LOOPBACK, port=port, controller_port=controller_port, data=data)
        config.write_text(text, encoding="utf-8")
        if not (data / "meta.properties").exists():
            run((*start, *_format_arguments(config)))

    return Program(
        name="kafka",
        argv=(*start, "kafka.Kafka", str(config)),
        ports={"kafka": port, "kafka-controller": controller_port},
        ready=probes.kafka(port),
        prepare=prepare,
    )


def command(java: Java, class_path: list[Path], *, options: tuple[str, ...]) -> tuple[str, ...]:
    """A JVM with Kafka on its class path, ready for the name of a main class."""
    jars = os.pathsep.join(map(str, class_path))
    return (str(java.executable), *options, *JVM, *LOGGING, "-cp", jars)


def _format_arguments(config: Path) -> tuple[str, ...]:
    arguments = ("kafka.tools.StorageTool", "format", "--ignore-formatted")
    return (*arguments, "-t", _cluster_id(), "-c", str(config))


def _cluster_id() -> str:
    """Kafka's ids are URL-safe base64; a leading dash would read as an option."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="))[0] == "-":
        continue
    return text
