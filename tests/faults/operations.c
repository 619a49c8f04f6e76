/* Interrupts a process at its n-th file operation below a directory: by SIGKILL, amid a write, or by an error code.
 *
 * Loaded by LD_PRELOAD, so that it also sees the operations of C++ libraries. Its environment variables:
 *   FAULT_ROOT   the directory; operations elsewhere are left alone
 *   FAULT_COUNT  a file of one 64-bit counter for each kind of operation, in the order of `enum kind`
 *   FAULT_AT     KIND:N:ACTION:TIMES, of which ACTION is kill (before the operation), torn (half of a write, then
 *                kill), after (the operation, then kill) or the number of an error; TIMES is how many operations of
 *                the kind fail from the n-th on
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN, WRITE, RENAME, FSYNC, UNLINK, MKDIR, KINDS };
static const char *names[] = {"open", "write", "rename", "fsync", "unlink", "mkdir"};
enum action { NOTHING, FAIL, TORN, AFTER };

static _Atomic unsigned long *counts;
static const char *root;
static int kind_at = -1, error_at;
static unsigned long first_at, times_at;
static char action_at[16];

__attribute__((constructor)) static void begin(void) {
  char kind[16];
  const char *file = getenv("FAULT_COUNT"), *at = getenv("FAULT_AT");
  root = getenv("FAULT_ROOT");
  int fd = file ? open(file, O_RDWR | O_CREAT, 0600) : -1;
  size_t size = KINDS * sizeof *counts;
  if (!root || fd < 0 || ftruncate(fd, size)) { root = NULL; return; }
  counts = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at && sscanf(at, "%15[a-z]:%lu:%15[a-z0-9]:%lu", kind, &first_at, action_at, &times_at) == 4)
    for (int i = 0; i < KINDS; i++)
      if (!strcmp(kind, names[i])) kind_at = i;
  error_at = atoi(action_at);
}

static int below(const char *path) {
  char full[PATH_MAX];
  if (!root || !path) return 0;
  if (path[0] != '/') {
    if (!getcwd(full, sizeof full)) return 0;
    strncat(full, "/", sizeof full - strlen(full) - 1);
    strncat(full, path, sizeof full - strlen(full) - 1);
    path = full;
  }
  return !strncmp(path, root, strlen(root));
}

static int fd_below(int fd) {
  char link[40], path[PATH_MAX];
  if (!root) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  return n > 0 && (path[n] = 0, below(path));
}

static int at_below(int folder, const char *path) {
  return path[0] == '/' || folder == AT_FDCWD ? below(path) : fd_below(folder);
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

/* Counts an operation; says what is to happen to it. */
static enum action strike(enum kind kind) {
  unsigned long n = atomic_fetch_add(&counts[kind], 1) + 1;
  if (kind != kind_at || n < first_at || n >= first_at + times_at) return NOTHING;
  if (!strcmp(action_at, "kill")) die();
  if (!strcmp(action_at, "torn")) return TORN;
  if (!strcmp(action_at, "after")) return AFTER;
  errno = error_at;
  return FAIL;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRAP(kind, condition, call)                          \
  enum action action = (condition) ? strike(kind) : NOTHING; \
  if (action == FAIL) return -1;                             \
  __typeof__(call) result = (call);                          \
  if (action != NOTHING) die();                              \
  return result

#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT))
#define MODE mode_t mode = 0; va_list list; va_start(list, flags); \
  if (flags & (O_CREAT | __O_TMPFILE)) mode = va_arg(list, mode_t); va_end(list)

int open(const char *path, int flags, ...) { MODE; WRAP(OPEN, WRITES(flags) && below(path), REAL(open)(path, flags, mode)); }
int open64(const char *path, int flags, ...) { MODE; WRAP(OPEN, WRITES(flags) && below(path), REAL(open64)(path, flags, mode)); }
int openat(int d, const char *path, int flags, ...) { MODE; WRAP(OPEN, WRITES(flags) && at_below(d, path), REAL(openat)(d, path, flags, mode)); }
int openat64(int d, const char *path, int flags, ...) { MODE; WRAP(OPEN, WRITES(flags) && at_below(d, path), REAL(openat64)(d, path, flags, mode)); }

#define TEAR(half) if (action == FAIL) return -1; if (action == TORN) { half; die(); }
#define WRITE_LIKE(half, whole)                                \
  enum action action = fd_below(fd) ? strike(WRITE) : NOTHING; \
  TEAR(half) ssize_t result = whole; if (action == AFTER) die(); return result

ssize_t write(int fd, const void *b, size_t n) { WRITE_LIKE(REAL(write)(fd, b, n / 2), REAL(write)(fd, b, n)); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { WRITE_LIKE(REAL(pwrite)(fd, b, n / 2, o), REAL(pwrite)(fd, b, n, o)); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { WRITE_LIKE(REAL(pwrite64)(fd, b, n / 2, o), REAL(pwrite64)(fd, b, n, o)); }
ssize_t writev(int fd, const struct iovec *v, int n) { WRITE_LIKE(REAL(writev)(fd, v, n / 2), REAL(writev)(fd, v, n)); }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t o) { WRITE_LIKE(REAL(pwritev)(fd, v, n / 2, o), REAL(pwritev)(fd, v, n, o)); }
int ftruncate(int fd, off_t n) { WRAP(WRITE, fd_below(fd), REAL(ftruncate)(fd, n)); }
int ftruncate64(int fd, off64_t n) { WRAP(WRITE, fd_below(fd), REAL(ftruncate64)(fd, n)); }

int rename(const char *a, const char *b) { WRAP(RENAME, below(b), REAL(rename)(a, b)); }
int renameat(int c, const char *a, int d, const char *b) { WRAP(RENAME, at_below(d, b), REAL(renameat)(c, a, d, b)); }
int fsync(int fd) { WRAP(FSYNC, fd_below(fd), REAL(fsync)(fd)); }
int fdatasync(int fd) { WRAP(FSYNC, fd_below(fd), REAL(fdatasync)(fd)); }
int unlink(const char *path) { WRAP(UNLINK, below(path), REAL(unlink)(path)); }
int unlinkat(int d, const char *path, int flags) { WRAP(UNLINK, at_below(d, path), REAL(unlinkat)(d, path, flags)); }
int rmdir(const char *path) { WRAP(UNLINK, below(path), REAL(rmdir)(path)); }
int mkdir(const char *path, mode_t mode) { WRAP(MKDIR, below(path), REAL(mkdir)(path, mode)); }
int mkdirat(int d, const char *path, mode_t mode) { WRAP(MKDIR, at_below(d, path), REAL(mkdirat)(d, path, mode)); }
