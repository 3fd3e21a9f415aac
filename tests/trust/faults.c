/* Counts the calls by which a process changes files, or touches one file, and acts at the n-th.
 *
 * Loaded with LD_PRELOAD: Arrow, SQLite and Rust write without Python. A fork server calls
 * trust_arm in each child; other processes are armed by the variables TRUST_*. The counter is in
 * a file, so that all processes of one trial count together.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, KILL, TEAR, KILL_SELF, FULL, REPLACE, CUT, REWRITE };

static int what = OFF;
static long at = 0;
static volatile long *counter = 0;
static char watched[4096], other[4096]; /* the file that is touched, and what comes instead */
static const char *watched_name = "";
static ino_t watched_inode = 0;
static volatile int full = 0;

#define REAL(name) \
    static __typeof__(&name) real = 0; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

void trust_arm(int what_, long at_, const char *counter_file, const char *watched_, const char *other_)
{
    int fd = (int)syscall(SYS_openat, AT_FDCWD, counter_file, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    struct stat about;
    if (fd < 0) return;
    if (syscall(SYS_fstat, fd, &about) == 0 && about.st_size < (off_t)sizeof(long))
        syscall(SYS_ftruncate, fd, (long)sizeof(long));
    counter = (volatile long *)mmap(0, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (counter == MAP_FAILED) { counter = 0; return; }
    at = at_;
    strncpy(watched, watched_ ? watched_ : "", sizeof watched - 1);
    strncpy(other, other_ ? other_ : "", sizeof other - 1);
    watched_name = strrchr(watched, '/') ? strrchr(watched, '/') + 1 : watched;
    if (watched[0] && syscall(SYS_newfstatat, AT_FDCWD, watched, &about, 0) == 0)
        watched_inode = about.st_ino;
    what = what_;
}

__attribute__((constructor)) static void arm_by_environment(void)
{
    const char *kind = getenv("TRUST_WHAT"), *file = getenv("TRUST_COUNTER");
    if (kind && file)
        trust_arm(atoi(kind), atol(getenv("TRUST_AT") ? getenv("TRUST_AT") : "0"), file,
                  getenv("TRUST_WATCHED"), getenv("TRUST_OTHER"));
}

static void rewrite(void)
{
    char block[65536];
    long from = syscall(SYS_openat, AT_FDCWD, other, O_RDONLY, 0), size;
    long to = syscall(SYS_openat, AT_FDCWD, watched, O_WRONLY | O_TRUNC, 0);
    while ((size = syscall(SYS_read, from, block, sizeof block)) > 0)
        syscall(SYS_write, to, block, size);
    syscall(SYS_close, from);
    syscall(SYS_close, to);
}

static void act(void)
{
    struct stat about;
    switch (what) {
    case KILL: case TEAR: syscall(SYS_kill, 0, SIGKILL); for (;;) pause();
    case KILL_SELF: syscall(SYS_kill, getpid(), SIGKILL); for (;;) pause();
    case FULL: full = 1; break;
    case REPLACE: syscall(SYS_renameat, AT_FDCWD, other, AT_FDCWD, watched); break;
    case CUT:
        if (syscall(SYS_newfstatat, AT_FDCWD, watched, &about, 0) == 0)
            syscall(SYS_truncate, watched, (long)about.st_size / 2);
        break;
    case REWRITE: rewrite(); break;
    }
}

static int hit(void) { return __sync_add_and_fetch(counter, 1) == at; }
static int of_changes(void) { return counter && what >= KILL && what <= FULL; }
static int of_touches(void) { return counter && what >= REPLACE; }

static int is_file(int fd)
{
    struct stat about;
    return fd > 2 && syscall(SYS_fstat, fd, &about) == 0 && S_ISREG(about.st_mode);
}

static void change(void) { if (of_changes() && hit()) act(); }

/* Before a write: 1 where there is no space for it. */
static int change_file(int fd, const void *bytes, size_t size, off_t place)
{
    if (!of_changes() || !is_file(fd)) return 0;
    if (hit()) {
        if (what == TEAR && size > 1) {
            if (place < 0) syscall(SYS_write, fd, bytes, size / 2);
            else syscall(SYS_pwrite64, fd, bytes, size / 2, place);
        }
        act();
    }
    if (full) errno = ENOSPC;
    return full;
}

static void touch_file(int fd)
{
    struct stat about;
    if (!of_touches() || fd < 0) return;
    int before = errno;
    if (syscall(SYS_fstat, fd, &about) == 0 && about.st_ino == watched_inode && hit()) act();
    errno = before;
}

static void touch_path(const char *path)
{
    if (!of_touches() || !path) return;
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    int before = errno;
    if (strcmp(name, watched_name) == 0 && hit()) act();
    errno = before;
}

/* Changes. */

ssize_t write(int fd, const void *bytes, size_t size)
{ REAL(write); return change_file(fd, bytes, size, -1) ? -1 : real(fd, bytes, size); }
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t place)
{ REAL(pwrite); return change_file(fd, bytes, size, place) ? -1 : real(fd, bytes, size, place); }
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t place)
{ REAL(pwrite64); return change_file(fd, bytes, size, place) ? -1 : real(fd, bytes, size, place); }
ssize_t writev(int fd, const struct iovec *parts, int count)
{ REAL(writev); return change_file(fd, parts->iov_base, parts->iov_len, -1) ? -1 : real(fd, parts, count); }
ssize_t sendfile(int to, int from, off_t *place, size_t size)
{ extern ssize_t sendfile(int, int, off_t *, size_t); REAL(sendfile);
  return change_file(to, "", 0, -1) ? -1 : real(to, from, place, size); }
ssize_t sendfile64(int to, int from, off64_t *place, size_t size)
{ extern ssize_t sendfile64(int, int, off64_t *, size_t); REAL(sendfile64);
  return change_file(to, "", 0, -1) ? -1 : real(to, from, place, size); }
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned int flags)
{ REAL(copy_file_range); return change_file(to, "", 0, -1) ? -1 : real(from, a, to, b, size, flags); }
int ftruncate(int fd, off_t size) { REAL(ftruncate); change(); return real(fd, size); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); change(); return real(fd, size); }
int fsync(int fd) { REAL(fsync); change(); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); change(); return real(fd); }
int rename(const char *a, const char *b) { REAL(rename); change(); return real(a, b); }
int renameat(int x, const char *a, int y, const char *b)
{ REAL(renameat); change(); return real(x, a, y, b); }
int renameat2(int x, const char *a, int y, const char *b, unsigned int flags)
{ REAL(renameat2); change(); return real(x, a, y, b, flags); }
int link(const char *a, const char *b) { REAL(link); change(); return real(a, b); }
int linkat(int x, const char *a, int y, const char *b, int flags)
{ REAL(linkat); change(); return real(x, a, y, b, flags); }
int symlink(const char *a, const char *b) { REAL(symlink); change(); return real(a, b); }
int unlink(const char *path) { REAL(unlink); change(); return real(path); }
int unlinkat(int x, const char *path, int flags)
{ REAL(unlinkat); change(); return real(x, path, flags); }
int rmdir(const char *path) { REAL(rmdir); change(); return real(path); }
int mkdir(const char *path, mode_t mode)
{ REAL(mkdir); change(); if (full) { errno = ENOSPC; return -1; } return real(path, mode); }
int mkdirat(int x, const char *path, mode_t mode)
{ REAL(mkdirat); change(); if (full) { errno = ENOSPC; return -1; } return real(x, path, mode); }

/* Opening makes files, and touches one. */

static int opened(const char *path, int flags)
{
    if (flags & (O_CREAT | O_TRUNC)) change();
    else touch_path(path);
    if (full && (flags & O_CREAT)) { errno = ENOSPC; return 1; }
    return 0;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); \
    }
int open(const char *path, int flags, ...)
{ MODE(flags); REAL(open); return opened(path, flags) ? -1 : real(path, flags, mode); }
int open64(const char *path, int flags, ...)
{ MODE(flags); REAL(open64); return opened(path, flags) ? -1 : real(path, flags, mode); }
int openat(int x, const char *path, int flags, ...)
{ MODE(flags); REAL(openat); return opened(path, flags) ? -1 : real(x, path, flags, mode); }
int openat64(int x, const char *path, int flags, ...)
{ MODE(flags); REAL(openat64); return opened(path, flags) ? -1 : real(x, path, flags, mode); }

/* Touches. */

ssize_t read(int fd, void *bytes, size_t size)
{ REAL(read); touch_file(fd); return real(fd, bytes, size); }
ssize_t pread(int fd, void *bytes, size_t size, off_t place)
{ REAL(pread); touch_file(fd); return real(fd, bytes, size, place); }
ssize_t pread64(int fd, void *bytes, size_t size, off64_t place)
{ REAL(pread64); touch_file(fd); return real(fd, bytes, size, place); }
int stat(const char *path, struct stat *about)
{ REAL(stat); touch_path(path); return real(path, about); }
int stat64(const char *path, struct stat64 *about)
{ REAL(stat64); touch_path(path); return real(path, about); }
int fstat(int fd, struct stat *about)
{ REAL(fstat); touch_file(fd); return real(fd, about); }
int fstat64(int fd, struct stat64 *about)
{ REAL(fstat64); touch_file(fd); return real(fd, about); }
/* A file that is cut after it was mapped ends the process that reads it there. */
void *mmap(void *where, size_t size, int kind, int flags, int fd, off_t place)
{
    touch_file(fd);
    return (void *)syscall(SYS_mmap, where, size, kind, flags, fd, place);
}
void *mmap64(void *where, size_t size, int kind, int flags, int fd, off64_t place)
{
    touch_file(fd);
    void *made = (void *)syscall(SYS_mmap, where, size, kind, flags, fd, place);
    touch_file(fd);
    return made;
}
