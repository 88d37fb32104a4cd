// Makes one system call of a process fail, or kills the process there; loaded with LD_PRELOAD.
//
// `fault_set` says which: the n-th call of one kind whose path matches a pattern, in any thread. `fault_trace` writes
// every such call to a file, as KIND, a tab, and the path.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <regex.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char kind_[32];
static regex_t pattern_;
static int when_, until_, error_, count_, fired_, trace_ = -1;

// The calls numbered from `when` to `until` fail with `error`; -1: the process is killed.
void fault_set(const char *kind, const char *pattern, int when, int until, int error) {
  snprintf(kind_, sizeof kind_, "%s", kind);
  regcomp(&pattern_, pattern, REG_EXTENDED | REG_NOSUB);
  until_ = until, error_ = error, count_ = 0, fired_ = 0, when_ = when;
}

// No call fails from here on.
void fault_pause(void) { when_ = 0, trace_ = -1; }

int fault_fired(void) { return fired_; }

void fault_trace(const char *path) { trace_ = syscall(SYS_openat, AT_FDCWD, path, O_CREAT | O_WRONLY | O_APPEND, 0644); }

static int fails(const char *kind, const char *path) {
  if (trace_ >= 0) {
    char line[PATH_MAX + 40];
    int size = snprintf(line, sizeof line, "%s\t%s\n", kind, path);
    syscall(SYS_write, trace_, line, size);
  }
  if (!when_ || strcmp(kind, kind_) || regexec(&pattern_, path, 0, NULL, 0)) return 0;
  int number = __sync_add_and_fetch(&count_, 1);
  if (number < when_ || number > until_) return 0;
  if (error_ < 0) kill(getpid(), SIGKILL);
  fired_ = 1;
  errno = error_;
  return 1;
}

static const char *absolute(int folder, const char *path, char *found) {
  if (path[0] == '/') return path;
  char link[64];
  snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
  ssize_t size = readlink(link, found, PATH_MAX);
  if (size < 0) size = 0;
  snprintf(found + size, PATH_MAX, "/%s", path);
  return found;
}

static int fails_at(const char *kind, int folder, const char *path) {
  char found[2 * PATH_MAX];
  return (when_ || trace_ >= 0) && fails(kind, absolute(folder, path, found));
}

static int fails_open(const char *kind, int file) {
  if (!when_ && trace_ < 0) return 0;
  char link[64], found[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t size = readlink(link, found, sizeof found - 1);
  if (size <= 0 || found[0] != '/') return 0;
  found[size] = 0;
  return fails(kind, found);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define BY_FILE(kind, type, name, declared, ...) \
  type name declared { return fails_open(kind, file) ? -1 : REAL(name)(__VA_ARGS__); }
#define BY_PATH(kind, type, name, declared, folder, path, ...) \
  type name declared { return fails_at(kind, folder, path) ? -1 : REAL(name)(__VA_ARGS__); }
#define OPENING(name, declared, folder, ...)                                              \
  int name declared {                                                                     \
    va_list rest;                                                                         \
    va_start(rest, flags);                                                                \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;               \
    va_end(rest);                                                                         \
    const char *kind = flags & (O_CREAT | O_WRONLY | O_RDWR) ? "create" : "open";         \
    return fails_at(kind, folder, path) ? -1 : REAL(name)(__VA_ARGS__, flags, mode);      \
  }

OPENING(open, (const char *path, int flags, ...), AT_FDCWD, path)
OPENING(open64, (const char *path, int flags, ...), AT_FDCWD, path)
OPENING(openat, (int folder, const char *path, int flags, ...), folder, folder, path)
OPENING(openat64, (int folder, const char *path, int flags, ...), folder, folder, path)
BY_FILE("write", ssize_t, write, (int file, const void *data, size_t size), file, data, size)
BY_FILE("write", ssize_t, writev, (int file, const struct iovec *data, int size), file, data, size)
BY_FILE("write", ssize_t, pwrite, (int file, const void *data, size_t size, off_t at), file, data, size, at)
BY_FILE("write", ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t at), file, data, size, at)
BY_FILE("write", ssize_t, pwritev, (int file, const struct iovec *data, int size, off_t at), file, data, size, at)
BY_FILE("fsync", int, fsync, (int file), file)
BY_FILE("fsync", int, fdatasync, (int file), file)
BY_FILE("truncate", int, ftruncate, (int file, off_t size), file, size)
BY_FILE("truncate", int, ftruncate64, (int file, off64_t size), file, size)
BY_PATH("mkdir", int, mkdir, (const char *path, mode_t mode), AT_FDCWD, path, path, mode)
BY_PATH("mkdir", int, mkdirat, (int folder, const char *path, mode_t mode), folder, path, folder, path, mode)
BY_PATH("rename", int, rename, (const char *path, const char *to), AT_FDCWD, path, path, to)
BY_PATH("rename", int, renameat, (int a, const char *path, int b, const char *to), a, path, a, path, b, to)
BY_PATH("unlink", int, unlink, (const char *path), AT_FDCWD, path, path)
BY_PATH("unlink", int, unlinkat, (int folder, const char *path, int flags), folder, path, folder, path, flags)
BY_PATH("unlink", int, rmdir, (const char *path), AT_FDCWD, path, path)
