/*
 * What one process does to its disk and tells its clients, in one total order; and a disk that fails on request.
 *
 * Preloaded (LD_PRELOAD) into a daemon. IFBUS_DISK_ROOT is the directory that is the disk, IFBUS_DISK_LOG the file that
 * takes the record, IFBUS_DISK_CONTROL a file of at least sizeof(struct control) that the test maps too.
 * recording.py reads the record: keep both in step.
 *
 * One lock is held over each call and its record, so the order written is the order in which it happened, and no thread
 * gets between. Calls go straight to the kernel: nothing depends on which library would have come next. Only the process
 * that loaded this takes part: its children (by fork, vfork, exec) go by untouched.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_FD 65536
#define BLOCK 4096

/* Counters that this side adds to, and orders that the test may give at any time; 0 is "never". */
struct control {
    uint64_t syncs, writes, calls, failed; /* seen so far: fsync and fdatasync; what needs space; both and all other changes */
    uint64_t sync_at, sync_lasting;        /* the sync of this number fails with EIO, and all later ones if lasting */
    uint64_t write_at, write_lasting;      /* the same with ENOSPC for what needs space */
    uint64_t full;                         /* nothing grows: ENOSPC, but what is there can be overwritten */
    uint64_t freed;                        /* bytes that were given back since then: files may grow by these */
    uint64_t kill_at, stop_at;             /* SIGKILL / SIGSTOP in the place of, or before, the change of this number */
};

struct entry {
    uint8_t kind;
    uint8_t flag;
    uint16_t zero;
    int32_t fd;
    uint64_t number;
    uint64_t size; /* of the data that follows */
};

enum { UNKNOWN, STATE, CLIENT };

static char root[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static pid_t self;
static struct control *control;
static uint8_t role[MAX_FD];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void)
{
    const char *directory = getenv("IFBUS_DISK_ROOT"), *log = getenv("IFBUS_DISK_LOG"), *page = getenv("IFBUS_DISK_CONTROL");
    unsetenv("LD_PRELOAD");
    if (!directory || !log || !page || strlen(directory) >= sizeof root)
        return;
    strcpy(root, directory);
    root_length = strlen(root);
    int page_fd = syscall(SYS_openat, AT_FDCWD, page, O_RDWR | O_CLOEXEC, 0);
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, page_fd, 0);
    int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (page_fd < 0 || mapped == MAP_FAILED || fd < 0)
        abort();
    syscall(SYS_close, page_fd);
    control = mapped;
    /* Out of the way of programs that count on low numbers. */
    log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 500);
    syscall(SYS_close, fd);
    if (log_fd < 0)
        abort();
    self = getpid();
}

static int is_ours(void) { return self && getpid() == self; }

static int has_role(int fd, int wanted) { return fd >= 0 && fd < MAX_FD && role[fd] == wanted && is_ours(); }

static void note_vector(char kind, int flag, int fd, uint64_t number, const struct iovec *data, int count, size_t size)
{
    struct entry entry = {kind, flag, 0, fd, number, size};
    struct iovec all[65] = {{&entry, sizeof entry}};
    int used = 1;
    for (int i = 0; i < count && size > 0 && used < 65; i++) {
        size_t part = data[i].iov_len < size ? data[i].iov_len : size;
        all[used++] = (struct iovec){data[i].iov_base, part};
        size -= part;
    }
    size_t total = 0;
    for (int i = 0; i < used; i++)
        total += all[i].iov_len;
    int before = errno;
    /* A record with a hole would prove nothing. */
    if (size > 0 || syscall(SYS_writev, log_fd, all, used) != (ssize_t)total)
        abort();
    errno = before;
}

static void note(char kind, int flag, int fd, uint64_t number, const void *data, size_t size)
{
    struct iovec one = {(void *)data, size};
    note_vector(kind, flag, fd, number, &one, 1, size);
}

/* Something that no replay can follow: the reader refuses such a record. */
static void note_strange(const char *what) { note('?', 0, -1, 0, what, strlen(what)); }

static const char *inside(const char *path)
{
    if (!path || !is_ours() || strncmp(path, root, root_length))
        return NULL;
    if (path[root_length] == '/')
        return path + root_length + 1;
    return path[root_length] ? NULL : "";
}

static void count_call(void)
{
    uint64_t call = ++control->calls;
    if (call == control->kill_at)
        syscall(SYS_kill, self, SIGKILL);
    if (call == control->stop_at)
        syscall(SYS_kill, self, SIGSTOP);
}

static int strikes(uint64_t seen, uint64_t at, uint64_t lasting) { return at && (seen == at || (lasting && seen > at)); }

static uint64_t blocks(uint64_t size) { return (size + BLOCK - 1) / BLOCK * BLOCK; }

/* Whether a change that needs space finds none. `end` is where a write ends, 0 for a new name. */
static int has_no_space(int fd, uint64_t end)
{
    struct stat status;
    uint64_t grows = BLOCK;
    if (end && !fstat(fd, &status))
        grows = blocks(end) > blocks(status.st_size) ? blocks(end) - blocks(status.st_size) : 0;
    int is_full = control->full && grows > control->freed;
    if (!strikes(++control->writes, control->write_at, control->write_lasting) && !is_full) {
        if (control->full)
            control->freed -= grows;
        return 0;
    }
    control->failed++;
    note('N', 0, fd, 0, "", 0);
    errno = ENOSPC;
    return 1;
}

/* --- files --- */

static int open_at(int directory, const char *path, int flags, mode_t mode)
{
    const char *name = path && path[0] == '/' ? inside(path) : NULL;
    if (!name) {
        if (path && path[0] != '/' && has_role(directory, STATE))
            note_strange("a name relative to a directory of the state");
        int fd = syscall(SYS_openat, directory, path, flags, mode);
        if (fd >= 0 && fd < MAX_FD && is_ours())
            role[fd] = UNKNOWN;
        return fd;
    }
    pthread_mutex_lock(&lock);
    int existed = syscall(SYS_faccessat, AT_FDCWD, path, F_OK) == 0;
    int makes = (flags & O_CREAT) && !existed, fd = -1;
    if (makes)
        count_call();
    if (!makes || !has_no_space(-1, 0))
        fd = syscall(SYS_openat, directory, path, flags, mode);
    if (fd >= 0 && fd < MAX_FD) {
        role[fd] = STATE;
        note('O', makes, fd, (uint64_t)flags, name, strlen(name));
        if (existed && (flags & O_TRUNC))
            note('T', 0, fd, 0, "", 0);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

static mode_t mode_of(int flags, va_list arguments) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0; }

#define OPEN(name)                                                                                                      \
    EXPORT int name(const char *path, int flags, ...)                                                                   \
    {                                                                                                                   \
        va_list arguments;                                                                                              \
        va_start(arguments, flags);                                                                                     \
        mode_t mode = mode_of(flags, arguments);                                                                        \
        va_end(arguments);                                                                                              \
        return open_at(AT_FDCWD, path, flags, mode);                                                                    \
    }
#define OPENAT(name)                                                                                                    \
    EXPORT int name(int directory, const char *path, int flags, ...)                                                    \
    {                                                                                                                   \
        va_list arguments;                                                                                              \
        va_start(arguments, flags);                                                                                     \
        mode_t mode = mode_of(flags, arguments);                                                                        \
        va_end(arguments);                                                                                              \
        return open_at(directory, path, flags, mode);                                                                   \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

EXPORT int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
EXPORT int creat64(const char *path, mode_t mode) { return creat(path, mode); }

EXPORT int close(int fd)
{
    if (!has_role(fd, STATE) && !has_role(fd, CLIENT))
        return syscall(SYS_close, fd);
    pthread_mutex_lock(&lock);
    role[fd] = UNKNOWN;
    note('C', 0, fd, 0, "", 0);
    int result = syscall(SYS_close, fd);
    pthread_mutex_unlock(&lock);
    return result;
}

static ssize_t write_vector(int fd, const struct iovec *data, int count, int64_t at)
{
    size_t size = 0;
    for (int i = 0; i < count; i++)
        size += data[i].iov_len;
    pthread_mutex_lock(&lock);
    count_call();
    int64_t start = at;
    if (at < 0) {
        struct stat status;
        int appends = syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND;
        start = appends && !fstat(fd, &status) ? status.st_size : syscall(SYS_lseek, fd, 0, SEEK_CUR);
    }
    ssize_t result = -1;
    if (!has_no_space(fd, start + size))
        result = at < 0 ? syscall(SYS_writev, fd, data, count) : syscall(SYS_pwritev, fd, data, count, at, 0);
    if (result > 0)
        note_vector('W', 0, fd, start, data, count, result);
    pthread_mutex_unlock(&lock);
    return result;
}

/* --- clients: what was heard and what was answered --- */

static ssize_t note_traffic(char kind, int fd, const struct iovec *data, int count, ssize_t result)
{
    if (result > 0)
        note_vector(kind, 0, fd, 0, data, count, result);
    return result;
}

EXPORT ssize_t write(int fd, const void *data, size_t size)
{
    struct iovec one = {(void *)data, size};
    if (has_role(fd, STATE))
        return write_vector(fd, &one, 1, -1);
    if (!has_role(fd, CLIENT))
        return syscall(SYS_write, fd, data, size);
    pthread_mutex_lock(&lock);
    ssize_t result = note_traffic('A', fd, &one, 1, syscall(SYS_write, fd, data, size));
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT ssize_t writev(int fd, const struct iovec *data, int count)
{
    if (has_role(fd, STATE))
        return write_vector(fd, data, count, -1);
    if (!has_role(fd, CLIENT))
        return syscall(SYS_writev, fd, data, count);
    pthread_mutex_lock(&lock);
    ssize_t result = note_traffic('A', fd, data, count, syscall(SYS_writev, fd, data, count));
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    struct iovec one = {(void *)data, size};
    return has_role(fd, STATE) ? write_vector(fd, &one, 1, at) : syscall(SYS_pwrite64, fd, data, size, at);
}

EXPORT ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return pwrite(fd, data, size, at); }

EXPORT ssize_t pwritev(int fd, const struct iovec *data, int count, off_t at)
{
    return has_role(fd, STATE) ? write_vector(fd, data, count, at) : syscall(SYS_pwritev, fd, data, count, at, 0);
}

EXPORT ssize_t pwritev64(int fd, const struct iovec *data, int count, off64_t at) { return pwritev(fd, data, count, at); }

EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    if (!has_role(fd, CLIENT))
        return syscall(SYS_sendmsg, fd, message, flags);
    pthread_mutex_lock(&lock);
    ssize_t result = syscall(SYS_sendmsg, fd, message, flags);
    note_traffic('A', fd, message->msg_iov, message->msg_iovlen, result);
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length)
{
    if (!has_role(fd, CLIENT))
        return syscall(SYS_sendto, fd, data, size, flags, to, length);
    struct iovec one = {(void *)data, size};
    pthread_mutex_lock(&lock);
    ssize_t result = note_traffic('A', fd, &one, 1, syscall(SYS_sendto, fd, data, size, flags, to, length));
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT ssize_t send(int fd, const void *data, size_t size, int flags) { return sendto(fd, data, size, flags, NULL, 0); }

EXPORT ssize_t recvfrom(int fd, void *data, size_t size, int flags, struct sockaddr *from, socklen_t *length)
{
    if (!has_role(fd, CLIENT) || flags & MSG_PEEK)
        return syscall(SYS_recvfrom, fd, data, size, flags, from, length);
    struct iovec one = {data, size};
    pthread_mutex_lock(&lock);
    ssize_t result = note_traffic('H', fd, &one, 1, syscall(SYS_recvfrom, fd, data, size, flags, from, length));
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT ssize_t recv(int fd, void *data, size_t size, int flags) { return recvfrom(fd, data, size, flags, NULL, NULL); }

EXPORT ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    if (!has_role(fd, CLIENT) || flags & MSG_PEEK)
        return syscall(SYS_recvmsg, fd, message, flags);
    pthread_mutex_lock(&lock);
    ssize_t result = syscall(SYS_recvmsg, fd, message, flags);
    note_traffic('H', fd, message->msg_iov, message->msg_iovlen, result);
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int accept4(int fd, struct sockaddr *from, socklen_t *length, int flags)
{
    int client = syscall(SYS_accept4, fd, from, length, flags);
    if (client >= 0 && client < MAX_FD && is_ours()) {
        pthread_mutex_lock(&lock);
        role[client] = CLIENT;
        note('J', 0, client, 0, "", 0);
        pthread_mutex_unlock(&lock);
    }
    return client;
}

EXPORT int accept(int fd, struct sockaddr *from, socklen_t *length) { return accept4(fd, from, length, 0); }

/* --- the rest of what changes a disk --- */

static int truncate_fd(int fd, off_t length)
{
    pthread_mutex_lock(&lock);
    count_call();
    struct stat status;
    uint64_t before = fstat(fd, &status) ? 0 : blocks(status.st_size);
    int result = syscall(SYS_ftruncate, fd, length);
    if (!result) {
        if (control->full && before > blocks(length))
            control->freed += before - blocks(length);
        note('T', 0, fd, length, "", 0);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int ftruncate(int fd, off_t length)
{
    return has_role(fd, STATE) ? truncate_fd(fd, length) : syscall(SYS_ftruncate, fd, length);
}

EXPORT int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

EXPORT int truncate(const char *path, off_t length)
{
    if (inside(path))
        note_strange("truncate by name");
    return syscall(SYS_truncate, path, length);
}

EXPORT int truncate64(const char *path, off64_t length) { return truncate(path, length); }

EXPORT int fallocate(int fd, int mode, off_t at, off_t length)
{
    if (!has_role(fd, STATE))
        return syscall(SYS_fallocate, fd, mode, at, length);
    pthread_mutex_lock(&lock);
    count_call();
    int result = -1;
    if (!has_no_space(fd, at + length))
        result = syscall(SYS_fallocate, fd, mode, at, length);
    struct stat status;
    if (!result && mode)
        note_strange("fallocate with a mode");
    else if (!result && !fstat(fd, &status))
        note('T', 0, fd, status.st_size, "", 0); /* what it adds reads as zeros */
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int fallocate64(int fd, int mode, off64_t at, off64_t length) { return fallocate(fd, mode, at, length); }
EXPORT int posix_fallocate(int fd, off_t at, off_t length) { return fallocate(fd, 0, at, length) ? errno : 0; }
EXPORT int posix_fallocate64(int fd, off64_t at, off64_t length) { return posix_fallocate(fd, at, length); }

static int sync_fd(int fd, long number)
{
    if (!has_role(fd, STATE))
        return syscall(number, fd);
    pthread_mutex_lock(&lock);
    count_call();
    int result = -1;
    if (strikes(++control->syncs, control->sync_at, control->sync_lasting)) {
        control->failed++;
        note('E', 0, fd, 0, "", 0);
        errno = EIO;
    } else {
        result = syscall(number, fd);
        note(result ? 'E' : 'S', 0, fd, 0, "", 0);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int fsync(int fd) { return sync_fd(fd, SYS_fsync); }
EXPORT int fdatasync(int fd) { return sync_fd(fd, SYS_fdatasync); }

/* One name, or with `to` two, separated by a zero byte. */
static void note_names(char kind, const char *from, const char *to)
{
    struct iovec names[2] = {{(void *)from, strlen(from) + 1}, {(void *)to, to ? strlen(to) + 1 : 0}};
    note_vector(kind, 0, -1, 0, names, 2, names[0].iov_len + names[1].iov_len);
}

static int one_name(char kind, int directory, const char *path, long number, long argument)
{
    const char *name = inside(path);
    if (!name) {
        if (path && path[0] != '/' && has_role(directory, STATE))
            note_strange("a name relative to a directory of the state");
        return syscall(number, directory, path, argument);
    }
    pthread_mutex_lock(&lock);
    count_call();
    int result = -1;
    if (kind != 'M' || !has_no_space(-1, 0))
        result = syscall(number, directory, path, argument);
    if (!result)
        note_names(kind, name, NULL);
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int unlinkat(int directory, const char *path, int flags)
{
    return one_name(flags & AT_REMOVEDIR ? 'D' : 'U', directory, path, SYS_unlinkat, flags);
}

EXPORT int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
EXPORT int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
EXPORT int mkdirat(int directory, const char *path, mode_t mode) { return one_name('M', directory, path, SYS_mkdirat, mode); }
EXPORT int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

static int two_names(char kind, int at, const char *from, int to_at, const char *to, unsigned flags)
{
    long number = kind == 'R' ? SYS_renameat2 : SYS_linkat;
    const char *source = inside(from), *target = inside(to);
    if (!source && !target)
        return syscall(number, at, from, to_at, to, flags);
    pthread_mutex_lock(&lock);
    count_call();
    int result = syscall(number, at, from, to_at, to, flags);
    if (!result && source && target && !(kind == 'R' && flags))
        note_names(kind, source, target);
    else if (!result)
        note_strange("a name that crosses the border of the state, or an exchange");
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int renameat2(int at, const char *from, int to_at, const char *to, unsigned flags)
{
    return two_names('R', at, from, to_at, to, flags);
}

EXPORT int renameat(int at, const char *from, int to_at, const char *to) { return renameat2(at, from, to_at, to, 0); }
EXPORT int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }
EXPORT int linkat(int at, const char *from, int to_at, const char *to, int flags) { return two_names('L', at, from, to_at, to, flags); }
EXPORT int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

EXPORT int symlinkat(const char *target, int directory, const char *path)
{
    if (inside(path))
        note_strange("a symbolic link");
    return syscall(SYS_symlinkat, target, directory, path);
}

EXPORT int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

/* A page written through memory is seen by nobody. */
EXPORT void *mmap(void *where, size_t length, int protection, int flags, int fd, off_t at)
{
    if ((flags & MAP_TYPE) != MAP_PRIVATE && protection & PROT_WRITE && has_role(fd, STATE))
        note_strange("a file mapped for writing");
    return (void *)syscall(SYS_mmap, where, length, protection, flags, fd, at);
}

EXPORT void *mmap64(void *where, size_t length, int protection, int flags, int fd, off64_t at)
{
    return mmap(where, length, protection, flags, fd, at);
}
