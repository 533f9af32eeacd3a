/* Loaded into a server (LD_PRELOAD): shifts the clock that it sees by the milliseconds in the file CLOCK_SHIFT_FILE. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *shift_ms;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CLOCK_SHIFT_FILE");
    int fd = path ? open(path, O_RDONLY) : -1;
    if (fd < 0) return;
    void *found = mmap(NULL, sizeof(long long), PROT_READ, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED) shift_ms = found;
    close(fd);
}

int clock_gettime(clockid_t id, struct timespec *at) {
    int failed = (int)syscall(SYS_clock_gettime, id, at);
    if (failed || !shift_ms || (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE)) return failed;
    long long ns = at->tv_nsec + *shift_ms % 1000 * 1000000;
    at->tv_sec += *shift_ms / 1000;
    if (ns < 0) ns += 1000000000, at->tv_sec--;
    if (ns >= 1000000000) ns -= 1000000000, at->tv_sec++;
    at->tv_nsec = (long)ns;
    return 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
