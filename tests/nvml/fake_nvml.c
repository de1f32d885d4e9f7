/* A stand-in for libnvidia-ml.so.1: NVML's ABI over a shared file that a test pokes.
 *
 * Build: gcc -O2 -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 fake_nvml.c
 * Use:   JOULEGATE_FAKE_NVML=<file> LD_LIBRARY_PATH=<folder> <any NVML client>
 *
 * The file is one header of 4096 bytes and one record of 8192 bytes a GPU, both below, native byte order; offsets are
 * asserted at the end, and tests/nvml/stand_in.py writes the same layout. A record whose `sequence` is odd is being
 * written; readers wait for an even one. The file decides everything: which calls a generation supports, what they
 * return, how long they hang. Times are CLOCK_MONOTONIC seconds.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef int ret_t;
typedef void *dev_t_;
enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, TIMEOUT = 10, MISMATCH = 25 };

/* The order is the index into `rules`; stand_in.py reads this list. */
#define FUNCTIONS(X) \
  X(nvmlInitWithFlags) X(nvmlShutdown) X(nvmlSystemGetDriverVersion) X(nvmlSystemGetNVMLVersion) \
  X(nvmlSystemGetCudaDriverVersion) X(nvmlSystemGetProcessName) X(nvmlDeviceGetCount_v2) \
  X(nvmlDeviceGetHandleByIndex_v2) X(nvmlDeviceGetHandleByUUID) X(nvmlDeviceGetHandleByPciBusId_v2) \
  X(nvmlDeviceGetName) X(nvmlDeviceGetUUID) X(nvmlDeviceGetIndex) X(nvmlDeviceGetMinorNumber) \
  X(nvmlDeviceGetPciInfo_v3) X(nvmlDeviceGetBrand) X(nvmlDeviceGetArchitecture) X(nvmlDeviceGetComputeMode) \
  X(nvmlDeviceGetCudaComputeCapability) X(nvmlDeviceGetPersistenceMode) X(nvmlDeviceGetPowerUsage) \
  X(nvmlDeviceGetTotalEnergyConsumption) X(nvmlDeviceGetFieldValues) X(nvmlDeviceGetEnforcedPowerLimit) \
  X(nvmlDeviceGetPowerManagementLimit) X(nvmlDeviceGetPowerManagementLimitConstraints) \
  X(nvmlDeviceGetPowerManagementDefaultLimit) X(nvmlDeviceSetPowerManagementLimit) X(nvmlDeviceGetTemperature) \
  X(nvmlDeviceGetTemperatureV) X(nvmlDeviceGetTemperatureThreshold) X(nvmlDeviceGetMarginTemperature) \
  X(nvmlDeviceGetUtilizationRates) X(nvmlDeviceGetMemoryInfo) X(nvmlDeviceGetMemoryInfo_v2) \
  X(nvmlDeviceGetClockInfo) X(nvmlDeviceGetMaxClockInfo) X(nvmlDeviceGetCurrentClocksEventReasons) \
  X(nvmlDeviceGetPerformanceState) X(nvmlDeviceGetFanSpeed) X(nvmlDeviceGetMigMode) \
  X(nvmlDeviceGetComputeRunningProcesses_v3) X(nvmlDeviceGetGraphicsRunningProcesses_v3) \
  X(nvmlDeviceGetMPSComputeRunningProcesses_v3) X(nvmlDeviceGetProcessUtilization) \
  X(nvmlDeviceGetSupportedEventTypes) X(nvmlDeviceRegisterEvents) X(nvmlEventSetCreate) X(nvmlEventSetWait_v2) \
  X(nvmlEventSetFree)
#define AS_ENUM(name) FN_##name,
enum { FUNCTIONS(AS_ENUM) FN_COUNT };

enum { SEGMENTS = 64, RULES = 64, FIELDS = 256, PROCESSES = 8, MAX_GPUS = 32 };
enum { MODE_NONE, MODE_STATIC, MODE_ENERGY, MODE_INSTANT, MODE_AVERAGE };
enum { TYPE_DOUBLE, TYPE_UINT, TYPE_ULONG, TYPE_ULL, TYPE_SLL, TYPE_SINT, TYPE_USHORT };

struct rule { int32_t error; uint32_t hang_ms; uint32_t calls; uint32_t remaining; }; /* remaining 0: for ever */
struct segment { double epoch_s, base_mj, power_w; };      /* true energy = base + power * (t - epoch), from epoch on */
struct field { int64_t value; uint16_t error; uint8_t type, mode; uint32_t scopes; };
struct process { uint32_t pid, graphics; uint64_t memory_bytes; uint32_t sm_util, spare; };

struct gpu {
  union {
    struct {
      uint64_t sequence;
      char uuid[64], name[64];
      uint32_t lost;                     /* an error code that every call on this GPU returns */
      uint32_t segment_count;            /* written so far; the newest is at (count - 1) % SEGMENTS */
      uint32_t step_ms, lag_ms;          /* of the counter */
      int64_t direct_mj;                 /* >= 0: the counter, as it is; -1: from the segments */
      int64_t offset_mj;                 /* added to the counter: a reset is a negative jump */
      double instant_w, average_w;       /* nan: from the segments */
      double module_extra_w;             /* what scope MODULE has on top of scope GPU */
      uint32_t counter_is_module;        /* the segments, the counter and PowerUsage cover the module */
      uint32_t power_usage_mode;         /* MODE_INSTANT or MODE_AVERAGE */
      uint32_t min_poll_ms, fast_effect; /* polled faster, the instant field gives 1: 0 mW, 2: NOT_SUPPORTED */
      int32_t temperature_c, margin_c;
      uint32_t gpu_util, memory_util;
      uint64_t memory_total, memory_used;
      uint32_t limit_mw, limit_min_mw, limit_max_mw, limit_default_mw;
      uint32_t thresholds_c[8];
      uint32_t clocks_mhz[4];
      uint64_t clock_reasons, event_types, event_type, event_data, event_count;
      uint32_t architecture, brand, pci_device_id, pci_bus, mig, process_count;
    };
    uint8_t scalars[512];
  };
  struct segment segment[SEGMENTS];
  struct rule rules[RULES];
  union {
    struct process process[PROCESSES];
    uint8_t processes[1024];
  };
  struct field fields[FIELDS];
};

struct header {
  union {
    struct {
      uint32_t magic, version, count, capacity, generation, stale_error, inits, shutdowns;
      char driver[64], nvml[64];
      uint32_t cuda, spare[7];
      uint32_t order[MAX_GPUS];          /* NVML index -> record */
    };
    uint8_t scalars[512];
  };
  struct rule rules[RULES];
  uint8_t rest[4096 - 1536];
};

_Static_assert((int)FN_COUNT <= (int)RULES, "rules");
_Static_assert(offsetof(struct header, order) == 192, "order");
_Static_assert(offsetof(struct header, rules) == 512, "header rules");
_Static_assert(sizeof(struct header) == 4096, "header");
_Static_assert(offsetof(struct gpu, lost) == 136, "lost");
_Static_assert(offsetof(struct gpu, memory_total) == 224, "memory");
_Static_assert(offsetof(struct gpu, clock_reasons) == 304, "clock reasons");
_Static_assert(offsetof(struct gpu, process_count) == 364, "process count");
_Static_assert(offsetof(struct gpu, segment) == 512, "segment");
_Static_assert(offsetof(struct gpu, rules) == 2048, "rules");
_Static_assert(offsetof(struct gpu, process) == 3072, "process");
_Static_assert(offsetof(struct gpu, fields) == 4096, "fields");
_Static_assert(sizeof(struct gpu) == 8192, "record");

static struct header *shared;
static volatile int references;
static uint32_t born;                /* generation at init: handles of an older driver load are stale */
static double last_instant_s[MAX_GPUS];

static struct gpu *record(uint32_t i) { return (struct gpu *)((char *)shared + sizeof *shared + (size_t)i * sizeof(struct gpu)); }
static double now_s(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static void after_fork(void) { references = 0; }

static ret_t attach(void) {
  if (shared) return OK;
  const char *path = getenv("JOULEGATE_FAKE_NVML");
  int fd = path ? open(path, O_RDWR) : -1;
  if (fd < 0) return DRIVER_NOT_LOADED;
  struct stat st;
  fstat(fd, &st);
  void *at = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (at == MAP_FAILED) return DRIVER_NOT_LOADED;
  pthread_atfork(NULL, NULL, after_fork);
  shared = at;
  return OK;
}

static ret_t obey(volatile struct rule *rule) {
  __atomic_add_fetch(&rule->calls, 1, __ATOMIC_RELAXED);
  if (rule->hang_ms) {
    double until = now_s() + rule->hang_ms * 1e-3;
    while (rule->hang_ms && now_s() < until) usleep(1000);
  }
  ret_t error = rule->error;
  if (error && rule->remaining && __atomic_sub_fetch(&rule->remaining, 1, __ATOMIC_RELAXED) == 0) rule->error = 0;
  return error;
}

static ret_t enter_host(int fn) { return references ? obey(&shared->rules[fn]) : UNINITIALIZED; }

static dev_t_ handle_of(uint32_t i) { return (dev_t_)(uintptr_t)((born << 16) + i + 1); }

static ret_t enter(int fn, dev_t_ handle, struct gpu **out) {
  uintptr_t value = (uintptr_t)handle;
  if (!references) return UNINITIALIZED;
  uint32_t i = (value & 0xffff) - 1;
  if (!value || i >= shared->capacity) return INVALID_ARGUMENT;
  if (value >> 16 != shared->generation) return shared->stale_error;
  *out = record(i);
  ret_t error = obey(&(*out)->rules[fn]);
  if (error) return error;
  return (*out)->lost;
}

/* Evaluate an expression on a record that no writer changes meanwhile. */
#define CONSISTENT(g, result, expression) \
  for (;;) { \
    uint64_t before = __atomic_load_n(&(g)->sequence, __ATOMIC_ACQUIRE); \
    if (before & 1) { usleep(1); continue; } \
    result = (expression); \
    __atomic_thread_fence(__ATOMIC_ACQUIRE); \
    if (__atomic_load_n(&(g)->sequence, __ATOMIC_RELAXED) == before) break; \
  }

static double true_mj(const struct gpu *g, double t) {
  uint32_t n = g->segment_count, first = n > SEGMENTS ? n - SEGMENTS : 0;
  const struct segment *s = NULL;
  for (uint32_t i = n; i > first; i--) {
    s = &g->segment[(i - 1) % SEGMENTS];
    if (s->epoch_s <= t) break;
  }
  if (!s) return 0;
  return t <= s->epoch_s ? s->base_mj : s->base_mj + s->power_w * 1e3 * (t - s->epoch_s);
}

static double counter_mj(const struct gpu *g) {
  double seen = now_s() - g->lag_ms * 1e-3, step = g->step_ms * 1e-3;
  return true_mj(g, step ? floor(seen / step) * step : seen) + g->offset_mj;
}

static uint64_t whole(double value) { return value > 0 ? (uint64_t)value : 0; }

static uint64_t energy_mj(const struct gpu *g) {
  uint64_t value;
  CONSISTENT(g, value, g->direct_mj >= 0 ? (uint64_t)g->direct_mj : whole(counter_mj(g)));
  return value;
}

static double scope_w(const struct gpu *g, uint32_t scope) {
  return (scope == 1 ? g->module_extra_w : 0) - (g->counter_is_module ? g->module_extra_w : 0);
}

static double latest_w(const struct gpu *g) {
  if (!isnan(g->instant_w)) return g->instant_w;
  return g->segment_count ? g->segment[(g->segment_count - 1) % SEGMENTS].power_w : 0;
}

static double second_w(const struct gpu *g) {
  if (!isnan(g->average_w)) return g->average_w;
  if (!isnan(g->instant_w)) return g->instant_w;
  double t = now_s();
  return (true_mj(g, t) - true_mj(g, t - 1)) * 1e-3;
}

static double instant_w(const struct gpu *g, uint32_t scope) {
  double value;
  CONSISTENT(g, value, latest_w(g));
  return value + scope_w(g, scope);
}

static double average_w(const struct gpu *g, uint32_t scope) {
  double value;
  CONSISTENT(g, value, second_w(g));
  return value + scope_w(g, scope);
}

/* --- library and host ------------------------------------------------------------------------------------------- */
ret_t nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  ret_t error = attach();
  if (error) return error;
  if ((error = obey(&shared->rules[FN_nvmlInitWithFlags]))) return error;
  if (references == 0) born = shared->generation;
  references++;
  shared->inits++;
  return OK;
}
ret_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
ret_t nvmlInit(void) { return nvmlInitWithFlags(0); }
ret_t nvmlShutdown(void) {
  ret_t error = enter_host(FN_nvmlShutdown);
  if (error) return error;
  references--;
  shared->shutdowns++;
  return OK;
}
const char *nvmlErrorString(ret_t code) {
  static _Thread_local char text[32];
  snprintf(text, sizeof text, "ERROR_%d", code);
  return text;
}
#define HOST(fn) ret_t error = enter_host(FN_##fn); if (error) return error
ret_t nvmlSystemGetDriverVersion(char *out, unsigned size) { HOST(nvmlSystemGetDriverVersion); snprintf(out, size, "%s", shared->driver); return OK; }
ret_t nvmlSystemGetNVMLVersion(char *out, unsigned size) { HOST(nvmlSystemGetNVMLVersion); snprintf(out, size, "%s", shared->nvml); return OK; }
ret_t nvmlSystemGetCudaDriverVersion(int *out) { HOST(nvmlSystemGetCudaDriverVersion); *out = shared->cuda; return OK; }
ret_t nvmlSystemGetCudaDriverVersion_v2(int *out) { return nvmlSystemGetCudaDriverVersion(out); }
ret_t nvmlSystemGetProcessName(unsigned pid, char *out, unsigned size) { HOST(nvmlSystemGetProcessName); snprintf(out, size, "process-%u", pid); return OK; }
ret_t nvmlDeviceGetCount_v2(unsigned *out) { HOST(nvmlDeviceGetCount_v2); *out = shared->count; return OK; }
ret_t nvmlDeviceGetCount(unsigned *out) { return nvmlDeviceGetCount_v2(out); }

static ret_t give(uint32_t i, int fn, dev_t_ *out) {
  if (born != shared->generation) return shared->stale_error;
  ret_t error = obey(&record(i)->rules[fn]);
  if (error) return error;
  if (record(i)->lost) return record(i)->lost;
  *out = handle_of(i);
  return OK;
}
ret_t nvmlDeviceGetHandleByIndex_v2(unsigned index, dev_t_ *out) {
  HOST(nvmlDeviceGetHandleByIndex_v2);
  return index < shared->count ? give(shared->order[index], FN_nvmlDeviceGetHandleByIndex_v2, out) : INVALID_ARGUMENT;
}
ret_t nvmlDeviceGetHandleByIndex(unsigned index, dev_t_ *out) { return nvmlDeviceGetHandleByIndex_v2(index, out); }
ret_t nvmlDeviceGetHandleByUUID(const char *uuid, dev_t_ *out) {
  HOST(nvmlDeviceGetHandleByUUID);
  for (uint32_t i = 0; i < shared->count; i++)
    if (!strcmp(record(shared->order[i])->uuid, uuid)) return give(shared->order[i], FN_nvmlDeviceGetHandleByUUID, out);
  return NOT_FOUND;
}
ret_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus, dev_t_ *out) {
  HOST(nvmlDeviceGetHandleByPciBusId_v2);
  for (uint32_t i = 0; i < shared->count; i++) {
    char id[32];
    snprintf(id, sizeof id, "%08X:%02X:00.0", 0, record(shared->order[i])->pci_bus);
    if (!strcasecmp(id, bus)) return give(shared->order[i], FN_nvmlDeviceGetHandleByPciBusId_v2, out);
  }
  return NOT_FOUND;
}

/* --- one device -------------------------------------------------------------------------------------------------- */
#define DEVICE(fn) struct gpu *g = NULL; ret_t error = enter(FN_##fn, device, &g); if (error) return error
#define GETTER(fn, type, expression) ret_t fn(dev_t_ device, type *out) { DEVICE(fn); *out = (type)(expression); return OK; }

ret_t nvmlDeviceGetName(dev_t_ device, char *out, unsigned size) { DEVICE(nvmlDeviceGetName); snprintf(out, size, "%s", g->name); return OK; }
ret_t nvmlDeviceGetUUID(dev_t_ device, char *out, unsigned size) { DEVICE(nvmlDeviceGetUUID); snprintf(out, size, "%s", g->uuid); return OK; }
static unsigned index_of(struct gpu *g) {
  for (unsigned i = 0; i < shared->count; i++) if (record(shared->order[i]) == g) return i;
  return 0;
}
GETTER(nvmlDeviceGetIndex, unsigned, index_of(g))
GETTER(nvmlDeviceGetMinorNumber, unsigned, index_of(g))
GETTER(nvmlDeviceGetBrand, unsigned, g->brand)
GETTER(nvmlDeviceGetArchitecture, unsigned, g->architecture)
GETTER(nvmlDeviceGetComputeMode, unsigned, 0)
GETTER(nvmlDeviceGetPersistenceMode, unsigned, 1)
GETTER(nvmlDeviceGetPerformanceState, unsigned, 0)
GETTER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, energy_mj(g))
GETTER(nvmlDeviceGetEnforcedPowerLimit, unsigned, g->limit_mw)
GETTER(nvmlDeviceGetPowerManagementLimit, unsigned, g->limit_mw)
GETTER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, g->limit_default_mw)
GETTER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, g->clock_reasons)
GETTER(nvmlDeviceGetSupportedEventTypes, unsigned long long, g->event_types)
ret_t nvmlDeviceGetCurrentClocksThrottleReasons(dev_t_ device, unsigned long long *out) { return nvmlDeviceGetCurrentClocksEventReasons(device, out); }
ret_t nvmlDeviceGetFanSpeed(dev_t_ device, unsigned *out) { DEVICE(nvmlDeviceGetFanSpeed); (void)out; return NOT_SUPPORTED; }
ret_t nvmlDeviceGetPowerUsage(dev_t_ device, unsigned *out) {
  DEVICE(nvmlDeviceGetPowerUsage);
  *out = (unsigned)((g->power_usage_mode == MODE_AVERAGE ? average_w(g, g->counter_is_module) : instant_w(g, g->counter_is_module)) * 1e3);
  return OK;
}
ret_t nvmlDeviceSetPowerManagementLimit(dev_t_ device, unsigned mw) { DEVICE(nvmlDeviceSetPowerManagementLimit); g->limit_mw = mw; return OK; }
ret_t nvmlDeviceGetPowerManagementLimitConstraints(dev_t_ device, unsigned *low, unsigned *high) {
  DEVICE(nvmlDeviceGetPowerManagementLimitConstraints);
  *low = g->limit_min_mw;
  *high = g->limit_max_mw;
  return OK;
}
ret_t nvmlDeviceGetCudaComputeCapability(dev_t_ device, int *major, int *minor) {
  DEVICE(nvmlDeviceGetCudaComputeCapability);
  *major = (int)g->architecture;
  *minor = 0;
  return OK;
}
ret_t nvmlDeviceGetTemperature(dev_t_ device, unsigned sensor, unsigned *out) {
  DEVICE(nvmlDeviceGetTemperature);
  if (sensor) return INVALID_ARGUMENT;
  *out = g->temperature_c;
  return OK;
}
struct temperature { unsigned version, sensor; int value; };
ret_t nvmlDeviceGetTemperatureV(dev_t_ device, struct temperature *out) {
  DEVICE(nvmlDeviceGetTemperatureV);
  if (out->version != 0x100000C) return MISMATCH;
  out->value = g->temperature_c;
  return OK;
}
struct margin { unsigned version; int value; };
ret_t nvmlDeviceGetMarginTemperature(dev_t_ device, struct margin *out) {
  DEVICE(nvmlDeviceGetMarginTemperature);
  if (out->version != 0x1000008) return MISMATCH;
  out->value = g->margin_c;
  return OK;
}
ret_t nvmlDeviceGetTemperatureThreshold(dev_t_ device, unsigned which, unsigned *out) {
  DEVICE(nvmlDeviceGetTemperatureThreshold);
  if (which >= 8) return INVALID_ARGUMENT;
  if (!g->thresholds_c[which]) return NOT_SUPPORTED;
  *out = g->thresholds_c[which];
  return OK;
}
struct utilization { unsigned gpu, memory; };
ret_t nvmlDeviceGetUtilizationRates(dev_t_ device, struct utilization *out) {
  DEVICE(nvmlDeviceGetUtilizationRates);
  out->gpu = g->gpu_util;
  out->memory = g->memory_util;
  return OK;
}
struct memory { unsigned long long total, free, used; };
ret_t nvmlDeviceGetMemoryInfo(dev_t_ device, struct memory *out) {
  DEVICE(nvmlDeviceGetMemoryInfo);
  *out = (struct memory){g->memory_total, g->memory_total - g->memory_used, g->memory_used};
  return OK;
}
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
ret_t nvmlDeviceGetMemoryInfo_v2(dev_t_ device, struct memory_v2 *out) {
  DEVICE(nvmlDeviceGetMemoryInfo_v2);
  *out = (struct memory_v2){out->version, g->memory_total, 0, g->memory_total - g->memory_used, g->memory_used};
  return OK;
}
ret_t nvmlDeviceGetClockInfo(dev_t_ device, unsigned kind, unsigned *out) {
  DEVICE(nvmlDeviceGetClockInfo);
  if (kind >= 4) return INVALID_ARGUMENT;
  *out = g->clocks_mhz[kind];
  return OK;
}
ret_t nvmlDeviceGetMaxClockInfo(dev_t_ device, unsigned kind, unsigned *out) {
  DEVICE(nvmlDeviceGetMaxClockInfo);
  if (kind >= 4) return INVALID_ARGUMENT;
  *out = g->clocks_mhz[kind];
  return OK;
}
ret_t nvmlDeviceGetMigMode(dev_t_ device, unsigned *current, unsigned *pending) {
  DEVICE(nvmlDeviceGetMigMode);
  *current = *pending = g->mig;
  return OK;
}
struct pci { char legacy[16]; unsigned domain, bus, device, device_id, subsystem_id; char id[32]; };
ret_t nvmlDeviceGetPciInfo_v3(dev_t_ device, struct pci *out) {
  DEVICE(nvmlDeviceGetPciInfo_v3);
  memset(out, 0, sizeof *out);
  out->bus = g->pci_bus;
  out->device_id = g->pci_device_id;
  snprintf(out->legacy, sizeof out->legacy, "0000:%02X:00.0", g->pci_bus);
  snprintf(out->id, sizeof out->id, "%08X:%02X:00.0", 0, g->pci_bus);
  return OK;
}

/* --- field values ------------------------------------------------------------------------------------------------ */
union value { double d; unsigned u; unsigned long ul; unsigned long long ull; long long sll; int s; unsigned short us; };
struct item { unsigned field, scope; long long timestamp, latency; unsigned type, ret; union value value; };
_Static_assert(sizeof(struct item) == 40, "nvmlFieldValue_t");

static ret_t too_fast(struct gpu *g) {
  uint32_t i = (uint32_t)(((char *)g - (char *)shared - sizeof *shared) / sizeof *g);
  double t = now_s(), gap = t - last_instant_s[i];
  last_instant_s[i] = t;
  return gap * 1e3 < g->min_poll_ms ? g->fast_effect : 0;
}
static void fill(struct gpu *g, struct item *item) {
  const struct field *f = item->field < FIELDS ? &g->fields[item->field] : NULL;
  item->value.ull = 0;
  item->latency = 0;
  item->timestamp = time(NULL) * 1000000LL;
  item->ret = !f || f->mode == MODE_NONE ? NOT_SUPPORTED : f->error;
  if (item->ret) return;
  if (!(f->scopes >> item->scope & 1)) { item->ret = NOT_SUPPORTED; return; }
  double number = (double)f->value;
  if (f->mode == MODE_INSTANT) {
    int effect = too_fast(g);
    if (effect == 2) { item->ret = NOT_SUPPORTED; return; }
    number = effect == 1 ? 0 : instant_w(g, item->scope) * 1e3;
  }
  if (f->mode == MODE_AVERAGE) number = average_w(g, item->scope) * 1e3;
  item->type = f->type;
  switch (f->type) {
    case TYPE_DOUBLE: item->value.d = number; break;
    case TYPE_UINT: item->value.u = (unsigned)number; break;
    case TYPE_ULONG: item->value.ul = f->mode == MODE_ENERGY ? energy_mj(g) : (unsigned long)number; break;
    case TYPE_ULL: item->value.ull = f->mode == MODE_ENERGY ? energy_mj(g) : (unsigned long long)number; break;
    case TYPE_SLL: item->value.sll = (long long)number; break;
    case TYPE_SINT: item->value.s = (int)number; break;
    default: item->value.us = (unsigned short)number;
  }
}
ret_t nvmlDeviceGetFieldValues(dev_t_ device, int count, struct item *items) {
  DEVICE(nvmlDeviceGetFieldValues);
  for (int i = 0; i < count; i++) fill(g, &items[i]);
  return OK;
}

/* --- processes --------------------------------------------------------------------------------------------------- */
struct process_info { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; };
static ret_t running(struct gpu *g, uint32_t graphics, unsigned *count, struct process_info *out) {
  unsigned n = 0, room = *count;
  for (uint32_t i = 0; i < g->process_count; i++) {
    if (g->process[i].graphics != graphics) continue;
    if (out && n < room) out[n] = (struct process_info){g->process[i].pid, g->process[i].memory_bytes, ~0u, ~0u};
    n++;
  }
  *count = n;
  return n > room || (n && !out) ? INSUFFICIENT_SIZE : OK;
}
ret_t nvmlDeviceGetComputeRunningProcesses_v3(dev_t_ device, unsigned *count, struct process_info *out) {
  DEVICE(nvmlDeviceGetComputeRunningProcesses_v3);
  return running(g, 0, count, out);
}
ret_t nvmlDeviceGetGraphicsRunningProcesses_v3(dev_t_ device, unsigned *count, struct process_info *out) {
  DEVICE(nvmlDeviceGetGraphicsRunningProcesses_v3);
  return running(g, 1, count, out);
}
ret_t nvmlDeviceGetMPSComputeRunningProcesses_v3(dev_t_ device, unsigned *count, struct process_info *out) {
  DEVICE(nvmlDeviceGetMPSComputeRunningProcesses_v3);
  return running(g, 2, count, out);
}
struct sample { unsigned pid; unsigned long long timestamp; unsigned sm, memory, encoder, decoder; };
ret_t nvmlDeviceGetProcessUtilization(dev_t_ device, struct sample *out, unsigned *count, unsigned long long since) {
  DEVICE(nvmlDeviceGetProcessUtilization);
  unsigned n = 0, room = *count;
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  unsigned long long stamp = t.tv_sec * 1000000ULL + t.tv_nsec / 1000;
  for (uint32_t i = 0; i < g->process_count; i++) {
    if (!g->process[i].sm_util) continue;
    if (out && n < room) out[n] = (struct sample){g->process[i].pid, stamp, g->process[i].sm_util, 0, 0, 0};
    n++;
  }
  *count = n;
  if (!n || stamp <= since) return NOT_FOUND;
  return !out || n > room ? INSUFFICIENT_SIZE : OK;
}

/* --- events ------------------------------------------------------------------------------------------------------ */
struct set { uint32_t n; uint32_t records[MAX_GPUS]; uint64_t types[MAX_GPUS], seen[MAX_GPUS]; };
struct event { dev_t_ device; unsigned long long type, data; unsigned gpu_instance, compute_instance; };
ret_t nvmlEventSetCreate(struct set **out) { HOST(nvmlEventSetCreate); *out = calloc(1, sizeof **out); return OK; }
ret_t nvmlEventSetFree(struct set *set) { HOST(nvmlEventSetFree); free(set); return OK; }
ret_t nvmlDeviceRegisterEvents(dev_t_ device, unsigned long long types, struct set *set) {
  DEVICE(nvmlDeviceRegisterEvents);
  if (types & ~g->event_types) return NOT_SUPPORTED;
  if (set->n == MAX_GPUS) return INVALID_ARGUMENT;
  set->records[set->n] = ((uintptr_t)device & 0xffff) - 1;
  set->types[set->n] = types;
  set->seen[set->n++] = g->event_count;
  return OK;
}
ret_t nvmlEventSetWait_v2(struct set *set, struct event *out, unsigned timeout_ms) {
  HOST(nvmlEventSetWait_v2);
  for (double until = now_s() + timeout_ms * 1e-3; now_s() < until; usleep(50000)) {
    if (!references) return UNINITIALIZED;
    for (uint32_t i = 0; i < set->n; i++) {
      struct gpu *g = record(set->records[i]);
      if (g->event_count <= set->seen[i]) continue;
      set->seen[i] = g->event_count;
      if (!(g->event_type & set->types[i])) continue;
      *out = (struct event){handle_of(set->records[i]), g->event_type, g->event_data, ~0u, ~0u};
      return OK;
    }
  }
  return TIMEOUT;
}
