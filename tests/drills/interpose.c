/* Loaded before libc: counts the calls that touch what lies below a folder, tells of each, and
   fails one of them, all from one on, or ends the process there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { FILES = 4096, KILL_BEFORE = 1000, KILL_AFTER, SHORT };

static char folder[PATH_MAX];
static long at, calls;
static int what, every, told = -1;
static char* names[FILES]; /* of open files below the folder */

__attribute__((visibility("default"))) void interpose(const char* path, long k, int event,
                                                      int from_there_on, int log) {
  snprintf(folder, sizeof folder, "%s", path);
  at = k, what = event, every = from_there_on, calls = 0, told = log;
}

static int below(const char* path) {
  size_t length = strlen(folder);
  return length && path && !strncmp(path, folder, length);
}

static const char* name_of(int fd) { return fd >= 0 && fd < FILES ? names[fd] : NULL; }

static int now(void) { return every ? calls >= at : calls == at; }

/* Whether this call fails; errno is then set. */
static int fails(void) {
  calls++;
  if (!now() || what == 0 || what == SHORT || what == KILL_AFTER) return 0;
  if (what == KILL_BEFORE) kill(getpid(), SIGKILL);
  errno = what;
  return 1;
}

static void tell(const char* call, const char* path, const char* to, int failed) {
  int kept = errno;
  char line[2 * PATH_MAX + 64];
  int length = snprintf(line, sizeof line, "%s\t%s\t%s\t%d\n", call, path, to, failed);
  if (told >= 0) syscall(SYS_write, told, line, (size_t)length);
  if (now() && what == KILL_AFTER) kill(getpid(), SIGKILL);
  errno = kept;
}

#define REAL(call) ((__typeof__(&call))dlsym(RTLD_NEXT, #call))
#define EXPORT __attribute__((visibility("default")))

#define OPEN(call)                                                            \
  EXPORT int call(const char* path, int flags, ...) {                         \
    va_list rest;                                                             \
    va_start(rest, flags);                                                    \
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                             \
    int ours = below(path);                                                   \
    int fd = ours && fails() ? -1 : REAL(call)(path, flags, mode);            \
    if (fd >= 0 && fd < FILES) {                                              \
      free(names[fd]);                                                        \
      names[fd] = ours ? strdup(path) : NULL;                                 \
    }                                                                         \
    if (ours) tell("open", path, flags& O_CREAT ? "new" : "", fd < 0);        \
    return fd;                                                                \
  }
OPEN(open)
OPEN(open64)

EXPORT ssize_t write(int fd, const void* bytes, size_t count) {
  const char* name = name_of(fd);
  if (!name) return REAL(write)(fd, bytes, count);
  ssize_t done = -1;
  if (!fails()) done = REAL(write)(fd, bytes, now() && what == SHORT ? (count + 1) / 2 : count);
  tell("write", name, "", done < 0);
  return done;
}

EXPORT int fsync(int fd) {
  const char* name = name_of(fd);
  int failed = name && fails() ? -1 : REAL(fsync)(fd);
  if (name) tell("fsync", name, "", failed);
  return failed;
}

EXPORT int close(int fd) {
  char* name = fd >= 0 && fd < FILES ? names[fd] : NULL;
  int failed = name && fails() ? -1 : 0, why = errno;
  if (name) names[fd] = NULL;
  if (REAL(close)(fd))
    failed = -1; /* closed in any case */
  else
    errno = why;
  if (name) tell("close", name, "", failed);
  free(name);
  return failed;
}

EXPORT int rename(const char* from, const char* to) {
  int ours = below(to), failed = ours && fails() ? -1 : REAL(rename)(from, to);
  if (ours) tell("rename", from, to, failed);
  return failed;
}

#define PATH(call, parameters, ...)                                                  \
  EXPORT int call parameters {                                                       \
    int ours = below(path), failed = ours && fails() ? -1 : REAL(call)(__VA_ARGS__); \
    if (ours) tell(#call, path, "", failed);                                         \
    return failed;                                                                   \
  }
PATH(unlink, (const char* path), path)
PATH(rmdir, (const char* path), path)
PATH(mkdir, (const char* path, mode_t mode), path, mode)
