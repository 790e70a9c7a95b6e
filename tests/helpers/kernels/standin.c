/* A libcuda for machines without a GPU, under Triton's own launcher: it takes kernels and launches as the driver does,
   refuses what the driver refuses, keeps what it was given, and runs nothing.

   What a kernel takes is read from its cubin: registers, static shared memory, and the size of every parameter. Limits
   of the device are those of the CUDA C programming guide for the capability in `standin_capability`. */

#include "cuda.h"
#include <elf.h>
#include <stdlib.h>
#include <string.h>

#define LAUNCHES 4096
#define PARAMETERS 1024 /* bytes of them that are kept */
#define MOST_PARAMETERS 256

/* Codes of the .nv.info sections, as `cuobjdump -elf` names them. */
enum { EIFMT_SVAL = 0x04, EIATTR_KPARAM_INFO = 0x17, EIATTR_REGCOUNT = 0x2f };

typedef struct {
  char name[96];
  int registers, static_shared, dynamic_shared; /* of a thread; of a block, in bytes; what of it is allowed */
  int parameters, offset[MOST_PARAMETERS], size[MOST_PARAMETERS];
} Function;

typedef struct {
  char name[96];
  unsigned long long function, stream;
  unsigned grid[3], block, shared, registers, bytes;
  unsigned char parameters[PARAMETERS]; /* as the kernel sees them, each at its offset */
} Launch;

int standin_capability = 90;
long long standin_launches = 0;
Launch standin_last[LAUNCHES]; /* launch i at i % LAUNCHES */

static int most_shared(void) {
  switch (standin_capability) {
  case 80: return 163 * 1024;
  case 86: case 89: case 120: return 99 * 1024;
  default: return 227 * 1024;
  }
}

CUresult CUDAAPI cuInit(unsigned flags) { return CUDA_SUCCESS; }

CUresult CUDAAPI cuGetErrorString(CUresult error, const char **text) {
  switch (error) {
  case CUDA_SUCCESS: *text = "no error"; break;
  case CUDA_ERROR_INVALID_VALUE: *text = "invalid argument"; break;
  case CUDA_ERROR_INVALID_IMAGE: *text = "device kernel image is invalid"; break;
  case CUDA_ERROR_NOT_FOUND: *text = "named symbol not found"; break;
  case CUDA_ERROR_INVALID_HANDLE: *text = "invalid resource handle"; break;
  case CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: *text = "too many resources requested for launch"; break;
  default: *text = "unknown error";
  }
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch ((int)attribute) {
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = most_shared(); break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = most_shared() + 1024; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
  case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 1000000; break;
  case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 5120; break;
  default: return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxGetCurrent(CUcontext *context) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }

CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxGetLimit(size_t *value, CUlimit limit) {
  *value = 0;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }

CUresult CUDAAPI cuModuleLoadData(CUmodule *module, const void *image) {
  if (memcmp(image, ELFMAG, SELFMAG)) return CUDA_ERROR_INVALID_IMAGE;
  *module = (CUmodule)image; /* Triton keeps the image as long as the kernel */
  return CUDA_SUCCESS;
}

/* The attributes of a .nv.info section; `symbol` is the kernel's. */
static void read_info(Function *f, const unsigned char *at, const unsigned char *end, unsigned symbol) {
  while (at + 4 <= end) {
    unsigned format = at[0], attribute = at[1], length = format == EIFMT_SVAL ? at[2] | at[3] << 8 : 0;
    unsigned word[3] = {0, 0, 0};
    memcpy(word, at + 4, length < sizeof word ? length : sizeof word);
    if (attribute == EIATTR_REGCOUNT && length == 8 && word[0] == symbol) f->registers = word[1];
    if (attribute == EIATTR_KPARAM_INFO && length == 12) {
      unsigned ordinal = word[1] & 0xffff;
      if (ordinal >= MOST_PARAMETERS) abort();
      f->offset[ordinal] = word[1] >> 16;
      f->size[ordinal] = word[2] >> 18;
      if ((int)ordinal >= f->parameters) f->parameters = ordinal + 1;
    }
    at += 4 + length;
  }
}

CUresult CUDAAPI cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  const unsigned char *image = (const unsigned char *)module;
  const Elf64_Ehdr *header = (const Elf64_Ehdr *)image;
  const Elf64_Shdr *sections = (const Elf64_Shdr *)(image + header->e_shoff);
  const char *names = (const char *)image + sections[header->e_shstrndx].sh_offset;
  Function *f = calloc(1, sizeof *f);
  unsigned symbol = 0;
  strncpy(f->name, name, sizeof f->name - 1);
  f->dynamic_shared = 48 * 1024;
  for (int i = 0; i < header->e_shnum; i++)
    if (sections[i].sh_type == SHT_SYMTAB) {
      const Elf64_Sym *symbols = (const Elf64_Sym *)(image + sections[i].sh_offset);
      const char *text = (const char *)image + sections[sections[i].sh_link].sh_offset;
      for (unsigned j = 0; j < sections[i].sh_size / sizeof *symbols; j++)
        if (ELF64_ST_TYPE(symbols[j].st_info) == STT_FUNC && !strcmp(text + symbols[j].st_name, name)) symbol = j;
    }
  if (!symbol) return CUDA_ERROR_NOT_FOUND;
  for (int i = 0; i < header->e_shnum; i++) {
    const char *section = names + sections[i].sh_name;
    const unsigned char *start = image + sections[i].sh_offset, *end = start + sections[i].sh_size;
    if (!strcmp(section, ".nv.info")) read_info(f, start, end, symbol);
    if (!strncmp(section, ".nv.info.", 9) && !strcmp(section + 9, name)) read_info(f, start, end, symbol);
    /* Triton's own shared memory is dynamic; of what a cubin declares, 1 KiB is the system's from sm_90 on. */
    if (!strncmp(section, ".nv.shared.", 11) && !strcmp(section + 11, name))
      f->static_shared = (int)sections[i].sh_size - (standin_capability >= 90 ? 1024 : 0);
  }
  if (f->static_shared < 0) f->static_shared = 0;
  if (!f->registers || !f->parameters) return CUDA_ERROR_INVALID_IMAGE;
  *function = (CUfunction)f;
  return CUDA_SUCCESS;
}

/* Registers are given to warps, 256 at a time. */
static int registers_of_warp(const Function *f) { return (f->registers * 32 + 255) / 256 * 256; }

CUresult CUDAAPI cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  const Function *f = (const Function *)function;
  int warps = 65536 / registers_of_warp(f) / 4 * 4; /* of four equal parts of a multiprocessor */
  switch ((int)attribute) {
  case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = warps < 32 ? warps * 32 : 1024; break;
  case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = f->registers; break;
  case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = f->static_shared; break;
  case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = 0; break;
  default: return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  Function *f = (Function *)function;
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  if (value < 0 || value > most_shared() - f->static_shared) return CUDA_ERROR_INVALID_VALUE;
  f->dynamic_shared = value;
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

/* Tensors lie in the memory of the host. */
#undef cuPointerGetAttribute
CUresult CUDAAPI cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  memcpy(value, &pointer, sizeof pointer);
  return CUDA_SUCCESS;
}

/* Triton's launcher links to these and our kernels do not get there. */
CUresult CUDAAPI cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *config) {
  return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult CUDAAPI cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                        const cuuint64_t *size, const cuuint64_t *stride, const cuuint32_t *box,
                                        const cuuint32_t *element, CUtensorMapInterleave interleave,
                                        CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                        CUtensorMapFloatOOBfill fill) {
  return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult CUDAAPI cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
  const Function *f = (const Function *)function;
  unsigned long long threads = (unsigned long long)config->blockDimX * config->blockDimY * config->blockDimZ;
  if (!f) return CUDA_ERROR_INVALID_HANDLE;
  if (!config->gridDimX || !config->gridDimY || !config->gridDimZ || !threads) return CUDA_ERROR_INVALID_VALUE;
  if (config->gridDimX > 2147483647u || config->gridDimY > 65535 || config->gridDimZ > 65535)
    return CUDA_ERROR_INVALID_VALUE;
  if (threads > 1024 || config->blockDimZ > 64) return CUDA_ERROR_INVALID_VALUE;
  if ((int)config->sharedMemBytes > f->dynamic_shared) return CUDA_ERROR_INVALID_VALUE;
  if ((threads + 31) / 32 * registers_of_warp(f) > 65536) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;

  Launch *launch = &standin_last[standin_launches++ % LAUNCHES];
  memcpy(launch->name, f->name, sizeof launch->name);
  launch->function = (unsigned long long)f;
  launch->stream = (unsigned long long)config->hStream;
  launch->grid[0] = config->gridDimX, launch->grid[1] = config->gridDimY, launch->grid[2] = config->gridDimZ;
  launch->block = (unsigned)threads;
  launch->shared = config->sharedMemBytes;
  launch->registers = f->registers;
  launch->bytes = 0;
  memset(launch->parameters, 0, sizeof launch->parameters);
  for (int i = 0; i < f->parameters; i++) {
    unsigned end = f->offset[i] + f->size[i];
    if (end > PARAMETERS) return CUDA_ERROR_INVALID_VALUE;
    memcpy(launch->parameters + f->offset[i], parameters[i], f->size[i]);
    if (end > launch->bytes) launch->bytes = end;
  }
  return CUDA_SUCCESS;
}
