/* PID 1 of the conformance guest: loads the modules beside it, then does what one line on a vsock port asks.
 *
 * Port 5000 reads a command line and acts on it; port 5001 speaks before it is spoken to, then echoes. A process per
 * connection. The Python guest of the simulator's tests does the same, so one suite drives both.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { COMMAND_PORT = 5000, EARLY_PORT = 5001, READY_PORT = 5002, CHUNK = 65536 };

static const char *const modules[] = {"virtio_blk", "vsock", "vmw_vsock_virtio_transport_common",
                                      "vmw_vsock_virtio_transport", "button", "evdev"};

static void load_modules(void) {
    for (size_t i = 0; i < sizeof modules / sizeof *modules; i++) {
        char path[96];
        snprintf(path, sizeof path, "/modules/%s.ko", modules[i]);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue; /* built into this kernel */
        if (syscall(SYS_finit_module, fd, "", 0) != 0) fprintf(stderr, "%s: %s\n", modules[i], strerror(errno));
        close(fd);
    }
}

static int write_all(int fd, const void *data, size_t size) {
    for (const char *next = data; size > 0;) {
        ssize_t written = write(fd, next, size);
        if (written < 0) return -1;
        next += written;
        size -= (size_t)written;
    }
    return 0;
}

static void echo(int from, int to) {
    static char buffer[CHUNK];
    ssize_t size;
    while ((size = read(from, buffer, sizeof buffer)) > 0)
        if (write_all(to, buffer, (size_t)size) != 0) return;
}

/* Byte i of every stream the tests compare: no period that a lost or doubled block could hide in. */
static uint8_t pattern(uint64_t i) { return (uint8_t)(i * 131 + (i >> 8) * 29 + (i >> 16) * 7); }

static void send_pattern(int fd, uint64_t size) {
    static uint8_t buffer[CHUNK];
    for (uint64_t offset = 0; offset < size;) {
        size_t part = size - offset < CHUNK ? (size_t)(size - offset) : CHUNK;
        for (size_t i = 0; i < part; i++) buffer[i] = pattern(offset + i);
        if (write_all(fd, buffer, part) != 0) return;
        offset += part;
    }
}

/* Reads to the end and says how many bytes came and whether each was the pattern's. */
static void count(int from, int to) {
    static uint8_t buffer[CHUNK];
    uint64_t total = 0, wrong = 0;
    ssize_t size;
    while ((size = read(from, buffer, sizeof buffer)) > 0)
        for (ssize_t i = 0; i < size; i++, total++) wrong += buffer[i] != pattern(total);
    dprintf(to, "%llu %llu\n", (unsigned long long)total, (unsigned long long)wrong);
}

static void read_text(const char *path, char *text, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? 0 : read(fd, text, size - 1);
    if (fd >= 0) close(fd);
    text[length > 0 ? length : 0] = 0;
    text[strcspn(text, "\n")] = 0;
}

/* One line per disk: serial, read-only flag, size in sectors, the first 16 bytes in hex. */
static void list_disks(int to) {
    DIR *blocks = opendir("/sys/block");
    for (struct dirent *entry; blocks && (entry = readdir(blocks));) {
        if (strncmp(entry->d_name, "vd", 2) != 0) continue;
        char path[300], serial[64], readonly[8], sectors[32];
        uint8_t head[16] = {0};
        snprintf(path, sizeof path, "/sys/block/%s/serial", entry->d_name);
        read_text(path, serial, sizeof serial);
        snprintf(path, sizeof path, "/sys/block/%s/ro", entry->d_name);
        read_text(path, readonly, sizeof readonly);
        snprintf(path, sizeof path, "/sys/block/%s/size", entry->d_name);
        read_text(path, sectors, sizeof sectors);
        if (!*serial || !*sectors) continue; /* it is just being unplugged */
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0 && read(fd, head, sizeof head) < 0) memset(head, 0, sizeof head);
        if (fd >= 0) close(fd);
        dprintf(to, "%s %s %s ", serial, readonly, sectors);
        for (size_t i = 0; i < sizeof head; i++) dprintf(to, "%02x", head[i]);
        dprintf(to, "\n");
    }
    if (blocks) closedir(blocks);
}

static int dial_host(unsigned port) {
    struct sockaddr_vm host = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&host, sizeof host) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

/* Dials the host, sends `size` bytes of the pattern, half-closes, and hands what the host says to the caller. */
static void dial(int to, unsigned port, uint64_t size) {
    int host = dial_host(port);
    if (host < 0) {
        dprintf(to, "refused\n");
        return;
    }
    send_pattern(host, size);
    shutdown(host, SHUT_WR);
    echo(host, to);
    close(host);
}

static void sysrq(char key) {
    int fd = open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC);
    if (fd >= 0) (void)!write(fd, &key, 1);
}

static void act(int fd, char *line) {
    char *argument = strchr(line, ' ');
    if (argument) *argument++ = 0;
    const char *given = argument ? argument : "";
    if (strcmp(line, "echo") == 0) echo(fd, fd);
    if (strcmp(line, "send") == 0) send_pattern(fd, strtoull(given, NULL, 10));
    if (strcmp(line, "count") == 0) count(fd, fd);
    if (strcmp(line, "disks") == 0) list_disks(fd);
    if (strcmp(line, "dial") == 0) {
        char *rest;
        unsigned port = (unsigned)strtoul(given, &rest, 10);
        dial(fd, port, strtoull(rest, NULL, 10));
    }
    if (strcmp(line, "console") == 0) printf("%s\n", given);
    if (strcmp(line, "boot-id") == 0) {
        char id[64];
        read_text("/proc/sys/kernel/random/boot_id", id, sizeof id);
        dprintf(fd, "%s\n", id);
    }
    if (strcmp(line, "poweroff") == 0) reboot(RB_POWER_OFF);
    if (strcmp(line, "reboot") == 0) reboot(RB_AUTOBOOT);
    if (strcmp(line, "panic") == 0) sysrq('c');
}

static void serve_command(int fd) {
    char line[128];
    size_t length = 0;
    while (length < sizeof line - 1 && read(fd, line + length, 1) == 1 && line[length] != '\n') length++;
    line[length] = 0;
    act(fd, line);
}

static void serve_early(int fd) {
    static const char greeting[] = "early bytes\n";
    if (write_all(fd, greeting, sizeof greeting - 1) == 0) echo(fd, fd);
}

static int listen_on(unsigned port) {
    struct sockaddr_vm any = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof any) != 0 || listen(fd, 1024) != 0) {
        perror("vsock");
        exit(1);
    }
    return fd;
}

static void serve(unsigned port, void (*handle)(int)) {
    int listener = listen_on(port);
    if (fork() != 0) {
        close(listener);
        return;
    }
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd >= 0 && fork() == 0) {
            handle(fd);
            exit(0);
        }
        if (fd >= 0) close(fd);
    }
}

/* What is pressed from now on waits in the descriptor. */
static int open_button(void) {
    char path[64];
    int fd = -1;
    for (int i = 0; i < 8; i++) {
        char name[64];
        snprintf(path, sizeof path, "/dev/input/event%d", i);
        int candidate = open(path, O_RDONLY | O_CLOEXEC);
        if (candidate < 0) continue;
        if (ioctl(candidate, EVIOCGNAME(sizeof name), name) > 0 && strcmp(name, "Power Button") == 0) fd = candidate;
    }
    return fd;
}

/* Powers off when the ACPI button is pressed, as an operating system would. */
static void watch_button(int fd) {
    for (struct input_event event; fd >= 0 && read(fd, &event, sizeof event) == sizeof event;)
        if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1) reboot(RB_POWER_OFF);
}

int main(void) {
    mount("dev", "/dev", "devtmpfs", 0, "");
    mount("proc", "/proc", "proc", 0, "");
    mount("sys", "/sys", "sysfs", 0, "");
    int console = open("/dev/console", O_RDWR);
    for (int fd = 0; console >= 0 && fd < 3; fd++) dup2(console, fd);
    setvbuf(stdout, NULL, _IONBF, 0);
    signal(SIGCHLD, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    load_modules();
    serve(COMMAND_PORT, serve_command);
    serve(EARLY_PORT, serve_early);
    int button = open_button(); /* before anybody is told that the guest is ready */
    if (fork() == 0) {
        watch_button(button);
        exit(0);
    }
    printf("conformance guest ready\n");
    int ready = dial_host(READY_PORT); /* its end tells a waiting test that the ports are open */
    if (ready >= 0) close(ready);
    for (;;) pause();
}
