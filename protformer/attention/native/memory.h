// Memory for a call's operands, states and buffers.

#pragma once

#include <cstddef>
#include <cstdlib>

namespace favor {

// Memory that is laid out twice: once to learn its size, once for good.
class Layout {
  public:
    explicit Layout(char* base) : base_(base) {}
    template <class T>
    T* take(std::size_t count) {
        const std::size_t at = size_;
        size_ += (count * sizeof(T) + 63) / 64 * 64;
        return reinterpret_cast<T*>(base_ + at);
    }
    std::size_t size() const { return size_; }
    bool real() const { return base_; }

  private:
    char* base_;
    std::size_t size_ = 0;
};

// The calling thread's memory, kept from call to call while it is small: fresh pages cost more than what is done here.
class Memory {
  public:
    ~Memory() { std::free(at_); }
    char* get(std::size_t size) {
        if (size > size_) {
            std::free(at_);
            at_ = static_cast<char*>(std::aligned_alloc(64, size));
            size_ = at_ ? size : 0;
        }
        return at_;
    }
    void done() {
        if (size_ <= KEPT) return;
        std::free(at_);
        at_ = nullptr;
        size_ = 0;
    }

  private:
    static constexpr std::size_t KEPT = std::size_t{64} << 20;
    char* at_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace favor
