/*
 * The smallest guest there can be: dial the host over vsock, say one line, wait for the host to hang up, power off.
 * Benchmarks boot it in place of the agent, so that what a VM costs and what the agent costs can be told apart.
 */
#include <linux/vm_sockets.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define HOST_PORT 1025
#define TRIES 1000

static const struct timespec PAUSE = {.tv_nsec = 10 * 1000 * 1000};
static const char HELLO[] = "bare guest\n";

static int dial(void)
{
    struct sockaddr_vm host = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = HOST_PORT};

    for (int i = 0; i < TRIES; i++) {
        int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
        if (fd >= 0 && connect(fd, (struct sockaddr *)&host, sizeof host) == 0)
            return fd;
        if (fd >= 0)
            close(fd);
        nanosleep(&PAUSE, NULL);
    }
    return -1;
}

int main(void)
{
    char byte;
    int fd = dial();

    if (fd >= 0 && write(fd, HELLO, sizeof HELLO - 1) == sizeof HELLO - 1)
        while (read(fd, &byte, 1) > 0)
            ;
    sync();
    reboot(RB_POWER_OFF);
    return 1;
}
