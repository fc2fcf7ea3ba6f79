/* Shifts the wall clock of one process while it runs, as setting the machine's clock would: LD_PRELOAD this, and let
 * SHIFTED_CLOCK name a file of eight bytes, the shift in nanoseconds as a signed number. Whoever writes that file moves the clock.
 *
 * The monotonic clock is left alone. Who sleeps until a moment of the wall clock (a condition, a semaphore, a futex with such a
 * deadline, as gRPC's waits are) is woken by a jump across that moment, and sleeps longer after one backwards, as with a real
 * clock: such a sleep is taken in pieces, and the moment is looked at anew after each.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define PIECE (SECOND / 4)

static volatile int64_t *shift;
static int64_t none;

static long (*real_syscall)(long, ...);
static int (*real_condition)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static int (*real_semaphore)(sem_t *, const struct timespec *);

__attribute__((constructor)) static void open_shift(void) {
    const char *path = getenv("SHIFTED_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    shift = mapped == MAP_FAILED ? &none : mapped;
    real_syscall = dlsym(RTLD_NEXT, "syscall");
    /* The oldest version of a versioned name is what dlsym gives; it does not know clocks and attributes. */
    real_condition = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real_condition) real_condition = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    real_semaphore = dlsym(RTLD_NEXT, "sem_timedwait");
}

static int64_t shifted(void) { return shift ? *shift : 0; }

static int64_t nanoseconds(const struct timespec *moment) { return moment->tv_sec * SECOND + moment->tv_nsec; }

static struct timespec moment_of(int64_t value) {
    if (value < 0) value = 0;
    return (struct timespec){.tv_sec = value / SECOND, .tv_nsec = value % SECOND};
}

static int64_t machine_time(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
    return nanoseconds(&now);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) *now = moment_of(nanoseconds(now) + shifted());
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int64_t value = machine_time() + shifted();
    (void)zone;
    *now = (struct timeval){.tv_sec = value / SECOND, .tv_usec = value % SECOND / 1000};
    return 0;
}

time_t time(time_t *now) {
    time_t value = (machine_time() + shifted()) / SECOND;
    if (now) *now = value;
    return value;
}

int timespec_get(struct timespec *now, int base) {
    if (base != TIME_UTC) return 0;
    clock_gettime(CLOCK_REALTIME, now);
    return base;
}

/* The end of the next piece of a sleep, in the machine's time; `last`: there is no more after it. */
static struct timespec next_piece(const struct timespec *until, int *last) {
    int64_t end = nanoseconds(until) - shifted(), piece = machine_time() + PIECE;
    *last = end <= piece;
    return moment_of(*last ? end : piece);
}

/* Conditions made with the monotonic clock have moments far below any of the wall clock's: those pass as they are. */
static int of_the_wall(const struct timespec *until) { return until->tv_sec > 1000000000; }

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
    if (!of_the_wall(until)) return real_condition(condition, mutex, until);
    int last;
    struct timespec piece = next_piece(until, &last);
    int code = real_condition(condition, mutex, &piece);
    return code == ETIMEDOUT && !last ? 0 : code; /* a wake-up without a reason, which a condition may have at any time */
}

int sem_timedwait(sem_t *semaphore, const struct timespec *until) {
    for (;;) {
        int last;
        struct timespec piece = next_piece(until, &last);
        int failed = real_semaphore(semaphore, &piece);
        if (!failed || errno != ETIMEDOUT || last) return failed;
    }
}

long syscall(long number, ...) {
    long argument[6];
    va_list all;
    va_start(all, number);
    for (int index = 0; index < 6; index++) argument[index] = va_arg(all, long);
    va_end(all);
    if (!real_syscall) real_syscall = dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_futex) {
        int operation = (int)argument[1] & FUTEX_CMD_MASK;
        const struct timespec *until = (const struct timespec *)argument[3];
        if (operation == FUTEX_WAIT_BITSET && ((int)argument[1] & FUTEX_CLOCK_REALTIME) && until) {
            for (;;) {
                int last;
                struct timespec piece = next_piece(until, &last);
                long failed = real_syscall(number, argument[0], argument[1], argument[2], &piece, argument[4], argument[5]);
                if (!failed || errno != ETIMEDOUT || last) return failed;
            }
        }
    }
    return real_syscall(number, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5]);
}
