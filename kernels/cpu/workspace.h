// Memory of a pass, kept from one pass to the next so that it costs no page faults.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace tokenbus {

constexpr size_t kCacheLine = 64;
constexpr size_t kHugePage = size_t(2) << 20;

// Grows, never shrinks; its content is what the last taker left.
class Workspace {
   public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    ~Workspace() { std::free(base_); }

    // At least `size` bytes, or null.
    char* reserve(size_t size) {
        if (size <= size_) return base_;
        std::free(base_);
        size_ = (size + kHugePage - 1) / kHugePage * kHugePage;
        base_ = static_cast<char*>(std::aligned_alloc(kHugePage, size_));
        if (base_ == nullptr) size_ = 0;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        if (base_ != nullptr) madvise(base_, size_, MADV_HUGEPAGE);
#endif
        return base_;
    }

   private:
    char* base_ = nullptr;
    size_t size_ = 0;
};

// Cuts arrays off a block of memory; on a null base it only counts them.
class Cutter {
   public:
    explicit Cutter(char* base) : base_(base) {}

    template <class T>
    T* take(size_t count) {
        char* at = base_ == nullptr ? nullptr : base_ + used_;
        used_ += (count * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
        return reinterpret_cast<T*>(at);
    }

    size_t used() const { return used_; }

   private:
    char* base_;
    size_t used_ = 0;
};

}  // namespace tokenbus
