-- What the first hypervisor made, and a little that it wrote: two VMs, one with containers.
CREATE TABLE node (
    id INTEGER NOT NULL,
    node_id VARCHAR NOT NULL,
    draining BOOLEAN NOT NULL,
    pruned_sequence BIGINT NOT NULL,
    token_key BLOB NOT NULL,
    PRIMARY KEY (id)
);
CREATE TABLE vms (
    vm_id VARCHAR NOT NULL,
    user_id VARCHAR NOT NULL,
    guest_image VARCHAR NOT NULL,
    vcpus INTEGER NOT NULL,
    memory_bytes BIGINT NOT NULL,
    data_disk_bytes BIGINT NOT NULL,
    restart_mode VARCHAR NOT NULL,
    max_restarts INTEGER NOT NULL,
    initial_backoff BIGINT NOT NULL,
    max_backoff BIGINT NOT NULL,
    desired VARCHAR NOT NULL,
    state VARCHAR NOT NULL,
    epoch BIGINT NOT NULL,
    reason VARCHAR NOT NULL,
    message TEXT NOT NULL,
    revision BIGINT NOT NULL,
    restart_count INTEGER NOT NULL,
    recycle_wished INTEGER NOT NULL,
    recycle_started INTEGER NOT NULL,
    recycle_done INTEGER NOT NULL,
    force_delete BOOLEAN NOT NULL,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL,
    running_time BIGINT,
    next_try_time BIGINT,
    vmm_pid INTEGER NOT NULL,
    PRIMARY KEY (vm_id),
    UNIQUE (user_id)
);
CREATE INDEX vms_in_order ON vms (create_time, vm_id);
CREATE TABLE events (
    sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    time BIGINT NOT NULL,
    vm_id VARCHAR NOT NULL,
    container_name VARCHAR NOT NULL,
    epoch BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    trace_id VARCHAR NOT NULL,
    kind VARCHAR,
    payload TEXT,
    vm TEXT
);
CREATE INDEX events_of_vm ON events (vm_id, sequence);
CREATE TABLE requests (
    method VARCHAR NOT NULL,
    request_id VARCHAR NOT NULL,
    fingerprint BLOB NOT NULL,
    answer TEXT NOT NULL,
    time BIGINT NOT NULL,
    PRIMARY KEY (method, request_id)
);
CREATE INDEX ix_requests_time ON requests (time);
CREATE TABLE containers (
    vm_id VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    image VARCHAR NOT NULL,
    stop_grace BIGINT NOT NULL,
    document BLOB NOT NULL,
    wanted BOOLEAN NOT NULL,
    generation BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    state VARCHAR NOT NULL,
    health VARCHAR NOT NULL,
    exit_code INTEGER NOT NULL,
    restart_count BIGINT NOT NULL,
    oom_kills BIGINT NOT NULL,
    reason VARCHAR NOT NULL,
    message TEXT NOT NULL,
    start_time BIGINT,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL,
    PRIMARY KEY (vm_id, name),
    FOREIGN KEY(vm_id) REFERENCES vms (vm_id) ON DELETE CASCADE
);
CREATE TABLE agent_boots (
    vm_id VARCHAR NOT NULL,
    epoch BIGINT NOT NULL,
    boot_id VARCHAR NOT NULL,
    discard_layers BOOLEAN NOT NULL,
    time BIGINT NOT NULL,
    PRIMARY KEY (vm_id, epoch),
    FOREIGN KEY(vm_id) REFERENCES vms (vm_id) ON DELETE CASCADE
);
INSERT INTO node VALUES (1, '11111111-1111-4111-8111-111111111111', 0, 0, x'00');
INSERT INTO vms VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-00000000000a', 'sha256:aa', 1,
    536870912, 2147483648, 'ON_FAILURE', 5, 1000000, 30000000, 'RUNNING', 'RUNNING', 3, '', '', 9, 0, 0, 0, 0, 0,
    1760000000000000, 1760000001000000, 1760000001000000, NULL, 77);
INSERT INTO vms VALUES ('bbbbbbbb-0000-4000-8000-000000000002', 'bbbbbbbb-0000-4000-8000-00000000000b', 'sha256:aa', 1,
    536870912, 2147483648, 'NEVER', 5, 1000000, 30000000, 'STOPPED', 'STOPPED', 1, '', '', 4, 0, 0, 0, 0, 0,
    1760000002000000, 1760000003000000, NULL, NULL, 0);
INSERT INTO containers VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 'search', 'sha256:bb', 5000000, x'', 1, 2, 3,
    'RUNNING', 'UNKNOWN', 0, 0, 0, '', '', NULL, 1760000001000000, 1760000001000000);
INSERT INTO containers VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 'sandbox-live', 'sha256:bb', 5000000, x'', 1, 4, 3,
    'RUNNING', 'SERVING', 0, 0, 0, '', '', NULL, 1760000001000000, 1760000001000000);
INSERT INTO events (time, vm_id, container_name, epoch, generation, trace_id, kind, payload, vm) VALUES
    (1760000000000000, 'aaaaaaaa-0000-4000-8000-000000000001', '', 0, 0, '', NULL, NULL,
    '{"vm_id":"aaaaaaaa-0000-4000-8000-000000000001","user_id":"aaaaaaaa-0000-4000-8000-00000000000a","guest_image":"sha256:aa","vcpus":1,"memory_bytes":536870912,"data_disk_bytes":2147483648,"restart_mode":"ON_FAILURE","max_restarts":5,"initial_backoff":1000000,"max_backoff":30000000,"desired":"RUNNING","state":"RUNNING","epoch":3,"reason":"","message":"","revision":9,"restart_count":0,"recycle_wished":0,"recycle_started":0,"recycle_done":0,"force_delete":false,"create_time":1760000000000000,"update_time":1760000001000000,"running_time":1760000001000000,"next_try_time":null,"vmm_pid":77}');
PRAGMA user_version = 1;
