from buf.validate import validate_pb2 as _validate_pb2
from cellmesh.api.common.v1 import container_pb2 as _container_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OutputStream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_STREAM_UNSPECIFIED: _ClassVar[OutputStream]
    OUTPUT_STREAM_STDOUT: _ClassVar[OutputStream]
    OUTPUT_STREAM_STDERR: _ClassVar[OutputStream]
OUTPUT_STREAM_UNSPECIFIED: OutputStream
OUTPUT_STREAM_STDOUT: OutputStream
OUTPUT_STREAM_STDERR: OutputStream

class TerminalSize(_message.Message):
    __slots__ = ("rows", "columns")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: int
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[int] = ...) -> None: ...

class ExecOpen(_message.Message):
    __slots__ = ("vm_id", "container_name", "exec_id", "argv", "environment", "working_dir", "tty", "size", "resume", "stdout_offset", "stderr_offset")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_NAME_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIR_FIELD_NUMBER: _ClassVar[int]
    TTY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    STDOUT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    STDERR_OFFSET_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    container_name: str
    exec_id: str
    argv: _containers.RepeatedScalarFieldContainer[str]
    environment: _containers.RepeatedCompositeFieldContainer[_container_pb2.EnvironmentVariable]
    working_dir: str
    tty: bool
    size: TerminalSize
    resume: bool
    stdout_offset: int
    stderr_offset: int
    def __init__(self, vm_id: _Optional[str] = ..., container_name: _Optional[str] = ..., exec_id: _Optional[str] = ..., argv: _Optional[_Iterable[str]] = ..., environment: _Optional[_Iterable[_Union[_container_pb2.EnvironmentVariable, _Mapping]]] = ..., working_dir: _Optional[str] = ..., tty: _Optional[bool] = ..., size: _Optional[_Union[TerminalSize, _Mapping]] = ..., resume: _Optional[bool] = ..., stdout_offset: _Optional[int] = ..., stderr_offset: _Optional[int] = ...) -> None: ...

class ExecStdin(_message.Message):
    __slots__ = ("offset", "data", "eof")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    EOF_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    eof: bool
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., eof: _Optional[bool] = ...) -> None: ...

class ExecAck(_message.Message):
    __slots__ = ("stdout_offset", "stderr_offset")
    STDOUT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    STDERR_OFFSET_FIELD_NUMBER: _ClassVar[int]
    stdout_offset: int
    stderr_offset: int
    def __init__(self, stdout_offset: _Optional[int] = ..., stderr_offset: _Optional[int] = ...) -> None: ...

class ExecSignal(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class ExecInput(_message.Message):
    __slots__ = ("open", "stdin", "ack", "resize", "signal")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    open: ExecOpen
    stdin: ExecStdin
    ack: ExecAck
    resize: TerminalSize
    signal: ExecSignal
    def __init__(self, open: _Optional[_Union[ExecOpen, _Mapping]] = ..., stdin: _Optional[_Union[ExecStdin, _Mapping]] = ..., ack: _Optional[_Union[ExecAck, _Mapping]] = ..., resize: _Optional[_Union[TerminalSize, _Mapping]] = ..., signal: _Optional[_Union[ExecSignal, _Mapping]] = ...) -> None: ...

class ExecOpened(_message.Message):
    __slots__ = ("resumed", "stdin_offset")
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    STDIN_OFFSET_FIELD_NUMBER: _ClassVar[int]
    resumed: bool
    stdin_offset: int
    def __init__(self, resumed: _Optional[bool] = ..., stdin_offset: _Optional[int] = ...) -> None: ...

class ExecData(_message.Message):
    __slots__ = ("stream", "offset", "data")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    stream: OutputStream
    offset: int
    data: bytes
    def __init__(self, stream: _Optional[_Union[OutputStream, str]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ExecStdinAck(_message.Message):
    __slots__ = ("offset",)
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    offset: int
    def __init__(self, offset: _Optional[int] = ...) -> None: ...

class ExecExited(_message.Message):
    __slots__ = ("exit_code", "oom_killed", "stdout_length", "stderr_length")
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    OOM_KILLED_FIELD_NUMBER: _ClassVar[int]
    STDOUT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    STDERR_LENGTH_FIELD_NUMBER: _ClassVar[int]
    exit_code: int
    oom_killed: bool
    stdout_length: int
    stderr_length: int
    def __init__(self, exit_code: _Optional[int] = ..., oom_killed: _Optional[bool] = ..., stdout_length: _Optional[int] = ..., stderr_length: _Optional[int] = ...) -> None: ...

class ExecOutput(_message.Message):
    __slots__ = ("opened", "data", "stdin_ack", "exited")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    STDIN_ACK_FIELD_NUMBER: _ClassVar[int]
    EXITED_FIELD_NUMBER: _ClassVar[int]
    opened: ExecOpened
    data: ExecData
    stdin_ack: ExecStdinAck
    exited: ExecExited
    def __init__(self, opened: _Optional[_Union[ExecOpened, _Mapping]] = ..., data: _Optional[_Union[ExecData, _Mapping]] = ..., stdin_ack: _Optional[_Union[ExecStdinAck, _Mapping]] = ..., exited: _Optional[_Union[ExecExited, _Mapping]] = ...) -> None: ...
